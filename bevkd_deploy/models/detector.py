"""The camera+LiDAR detector, and the view of it that is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.models.bev import ConvFuser, Second, SecondFPN
from bevkd_deploy.models.camera import GatherViewTransform, ImageNeck
from bevkd_deploy.models.center_head import CenterHead
from bevkd_deploy.models.lidar import PillarEncoder, PillarScatter
from bevkd_deploy.models.network import Boxes, DetectionNetwork
from bevkd_deploy.models.resnet import ResNet

#: ImageNet statistics of RGB in 0..255, torchvision's 0..1 values times 255.
IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_STD = (58.395, 57.12, 57.375)

#: The graph inputs, in order.
INPUT_NAMES = ("images", "pillars", "pillar_count", "pillar_index", "lut_pixel", "lut_depth")


class FusionDetector(DetectionNetwork):
    """Camera+LiDAR BEV detector with mmdet3d's module names.

    images -> img_backbone -> img_neck -> view_transform -+
                                                          +-> fusion_layer -> pts_backbone -> pts_neck -> bbox_head
    pillars -> pts_voxel_encoder -> pts_middle_encoder ---+
    """

    spec: GraphSpec
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: ModelConfig, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        camera, lidar, bev, head = config.camera, config.lidar, config.bev, config.head
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)
        self.img_backbone = ResNet(camera.backbone, camera.base_channels, camera.feature_stride)
        self.img_neck = ImageNeck(self.img_backbone.out_channels, camera.neck_channels)
        self.view_transform = GatherViewTransform(camera.neck_channels, camera.bev_channels, spec)
        self.pts_voxel_encoder = PillarEncoder(lidar.channels, spec)
        self.pts_middle_encoder = PillarScatter(lidar.channels, bev.fused_channels, spec)
        self.fusion_layer = ConvFuser(camera.bev_channels, bev.fused_channels, bev.fused_channels)
        self.pts_backbone = Second(bev.fused_channels, bev.block_channels, bev.block_layers)
        self.pts_neck = SecondFPN(bev.block_channels, bev.neck_channels)
        self.bbox_head = CenterHead(self.pts_neck.out_channels, head.channels, head.peak_kernel, spec)

    def forward(
        self,
        images: Tensor,
        pillars: Tensor,
        pillar_count: Tensor,
        pillar_index: Tensor,
        lut_pixel: Tensor,
        lut_depth: Tensor,
    ) -> dict[str, Tensor]:
        """Batched graph inputs ([B, ...] of `GraphSpec.inputs`) -> the head's maps, [B, C, Y, X] each."""
        x = images.to(self.image_mean.dtype).flatten(0, 1).permute(0, 3, 1, 2)  # [B * N, 3, H, W]
        x = (x - self.image_mean) / self.image_std
        camera_bev = self.view_transform(self.img_neck(self.img_backbone(x)), lut_pixel, lut_depth)
        points = self.pts_voxel_encoder(pillars, pillar_count, pillar_index)
        lidar_bev = self.pts_middle_encoder(points, pillar_index)
        fused = self.fusion_layer(camera_bev, lidar_bev)
        maps: dict[str, Tensor] = self.bbox_head(self.pts_neck(self.pts_backbone(fused)))
        return maps

    def decode(self, maps: dict[str, Tensor]) -> Boxes:
        """Head maps -> boxes [B, K, 9], scores [B, K] descending, labels [B, K] int32."""
        return self.bbox_head.decode(maps)


class DeployedStudent(nn.Module):
    """The exported graph: six inputs without a batch axis in, boxes, scores and labels out."""

    def __init__(self, detector: FusionDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self,
        images: Tensor,
        pillars: Tensor,
        pillar_count: Tensor,
        pillar_index: Tensor,
        lut_pixel: Tensor,
        lut_depth: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`GraphSpec.inputs` -> `GraphSpec.outputs`."""
        images = images.to(self.detector.image_mean.dtype)  # first of all: TensorRT takes uint8 into a Cast only
        inputs = (images, pillars, pillar_count, pillar_index, lut_pixel, lut_depth)
        boxes, scores, labels = self.detector.decode(self.detector(*[tensor[None] for tensor in inputs]))
        return boxes[0], scores[0], labels[0]


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
