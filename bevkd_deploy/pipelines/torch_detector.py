"""A network in PyTorch behind the interface of an exported one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bevkd_deploy.benchmark.latency import SensorFrame
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.runtime.detections import Detections
from bevkd_deploy.runtime.preprocess import Preprocessor
from bevkd_deploy.runtime.stage_timer import StageTimer


class TorchDetector:
    """A network in PyTorch behind the same preprocessing and the same stages as an exported one."""

    def __init__(self, network: FusionDetector) -> None:
        self.network = network.eval()
        self.preprocess = Preprocessor(network.spec)

    @torch.no_grad()
    def infer(self, feed: Mapping[str, Any]) -> Detections:
        """Graph inputs of one frame -> boxes."""
        device = self.network.image_mean.device
        maps = self.network(**{name: torch.from_numpy(array)[None].to(device) for name, array in feed.items()})
        boxes, scores, labels = (tensor[0].cpu().numpy() for tensor in self.network.decode(maps))
        return Detections(boxes, scores, labels, self.network.spec.classes)

    def timed(self, frame: SensorFrame) -> Mapping[str, float]:
        """One frame, with the milliseconds of its stages."""
        timer = StageTimer()
        feed = self.preprocess(frame.images, frame.points, frame.calibration, timer=timer)
        self.infer(feed)
        timer.lap("engine")
        return timer.stages_ms
