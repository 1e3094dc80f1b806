"""A network in PyTorch behind the interface of an exported one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bevkd_deploy.benchmark.latency import SensorFrame
from bevkd_deploy.data.dataset import batched, preprocessor_for
from bevkd_deploy.models.network import DetectionNetwork
from bevkd_deploy.runtime.detections import Detections
from bevkd_deploy.runtime.stage_timer import StageTimer


class TorchDetector:
    """A network in PyTorch behind the same preprocessing and the same stages as an exported one."""

    def __init__(self, network: DetectionNetwork) -> None:
        self.network = network.eval()
        self.preprocess = preprocessor_for(network.spec)

    @torch.no_grad()
    def infer(self, feed: Mapping[str, Any]) -> Detections:
        """Graph inputs of one frame -> boxes."""
        device = next(self.network.parameters()).device
        inputs = batched([{name: torch.from_numpy(array) for name, array in feed.items()}])
        maps = self.network(**{name: value.to(device) for name, value in inputs.items()})
        boxes, scores, labels = (tensor[0].cpu().numpy() for tensor in self.network.decode(maps))
        return Detections(boxes, scores, labels, self.network.spec.classes)

    def timed(self, frame: SensorFrame) -> Mapping[str, float]:
        """One frame, with the milliseconds of its stages."""
        timer = StageTimer()
        feed = self.preprocess(frame.images, frame.points, frame.calibration, timer=timer)
        self.infer(feed)
        timer.lap("engine")
        return timer.stages_ms
