"""One small student, its graph contract, inputs made by the real preprocessing, and its FP32 graph."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import BevConfig, CameraConfig, HeadConfig, LidarConfig, ModelConfig
from bevkd_deploy.exporting.onnx_export import trace
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.models.detector import DeployedStudent, FusionDetector
from bevkd_deploy.runtime.preprocess import Preprocessor

CAMERAS = ("CAM_FRONT", "CAM_BACK")

CONFIG = ModelConfig(
    camera=CameraConfig(
        backbone="resnet10",
        base_channels=8,
        image_size_px=(64, 128),
        feature_stride=8,
        neck_channels=16,
        bev_channels=16,
        depth_m=(1.0, 25.0),
        depth_bins=12,
    ),
    lidar=LidarConfig(
        range_m=(-12.8, -9.6, -3.0, 12.8, 9.6, 3.0), pillar_size_m=0.4, max_pillars=400, max_points=8, channels=16
    ),
    bev=BevConfig(
        stride=2,
        heights_m=(-1.0, 1.0),
        fused_channels=16,
        block_channels=(16, 32),
        block_layers=(2, 2),
        neck_channels=16,
    ),
    head=HeadConfig(channels=16, top_k=50),
)


@pytest.fixture(scope="session")
def spec() -> GraphSpec:
    return CONFIG.graph_spec(CAMERAS)


@pytest.fixture(scope="session")
def student(spec: GraphSpec) -> DeployedStudent:
    """Random weights, and batch-norm statistics that are not the identity, so that folding them shows."""
    torch.manual_seed(0)
    detector = FusionDetector(CONFIG, spec)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.normal_(0.0, 0.1)
    return DeployedStudent(detector).eval()


@pytest.fixture(scope="session")
def feeds(spec: GraphSpec) -> list[dict[str, np.ndarray]]:
    """Two frames of noise, through the real preprocessing, seen by a camera ahead and one behind."""
    generator = np.random.default_rng(0)
    ahead = np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.3], [1, 0, 0, 0], [0, 0, 0, 1]])
    behind = np.array([[0.0, 1, 0, 0], [0, 0, -1, -0.3], [-1, 0, 0, 0], [0, 0, 0, 1]])
    intrinsics = np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]])
    calibration = Calibration(CAMERAS, np.stack([intrinsics] * 2), np.stack([ahead, behind]), ((120, 160),) * 2)
    prepare = Preprocessor(spec)
    frames = []
    for _ in range(2):
        images = [generator.integers(0, 256, (120, 160, 3)).astype(np.uint8) for _ in CAMERAS]
        low, high = [-12.8, -9.6, -3.0, 0.0, 0.0], [12.8, 9.6, 3.0, 255.0, 0.5]
        points = generator.uniform(low, high, (1500, 5)).astype(np.float32)
        frames.append(prepare(images, points, calibration))
    return frames


@pytest.fixture(scope="session")
def _fp32_model(student: DeployedStudent, spec: GraphSpec) -> onnx.ModelProto:
    return trace(student, spec)


@pytest.fixture
def fp32_model(_fp32_model: onnx.ModelProto) -> onnx.ModelProto:
    """The student as FP32 ONNX; each test has its own copy."""
    return copy.deepcopy(_fp32_model)
