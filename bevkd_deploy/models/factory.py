"""Build detectors from configuration."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.models.detector import FusionDetector


def build_detector(config: ModelConfig, spec: GraphSpec, seed: int) -> FusionDetector:
    """A detector with random weights that depend on the seed alone, and ImageNet weights where configured."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = FusionDetector(config, spec)
    if config.camera.pretrained:
        load_backbone(detector, Path(config.camera.pretrained))
    return detector


def load_backbone(detector: FusionDetector, path: Path) -> None:
    """Load a torchvision ResNet state dict into the image backbone; the classifier `fc` is left out.

    Batch counters may be absent: torchvision's published weights are older than they are.

    Raises:
        ArtifactError: the file is missing or damaged, or any other key differs; all are named.
    """
    if not path.is_file():
        raise ArtifactError(f"pretrained backbone not found: {path}")
    weights = {key: value for key, value in _read(path).items() if not key.startswith("fc.")}
    wanted = detector.img_backbone.state_dict()
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked"):
            weights.setdefault(key, value)
    missing = sorted(set(wanted) - set(weights))
    unexpected = sorted(set(weights) - set(wanted))
    shapes = sorted(key for key in set(wanted) & set(weights) if wanted[key].shape != weights[key].shape)
    if missing or unexpected or shapes:
        raise ArtifactError(
            f"{path} does not fit the image backbone: missing {missing}, unexpected {unexpected}, other shape {shapes}"
        )
    detector.img_backbone.load_state_dict(weights)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return weights
    except (SafetensorError, RuntimeError, UnpicklingError, EOFError) as error:
        raise ArtifactError(f"pretrained backbone {path} is damaged or holds more than weights: {error}") from error
