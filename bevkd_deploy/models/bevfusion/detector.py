"""BEVFusion whole, in plain torch: what mmdet3d's and mit-han-lab's checkpoints are loaded into.

    images -> img_backbone -> img_neck -> view_transform --+
                                                           +-> fusion_layer -> pts_backbone -> pts_neck -> bbox_head
    points -> pts_voxel_layer -> pts_middle_encoder -------+

Every module but `pts_voxel_layer` (which has no weights) carries mmdet3d's parameter names, and each is called once a
forward pass with outputs nested as mmdet3d nests them, so that a tap means the same in both. BEV maps are [B, C, X, Y].

Source: BEVFusion (arXiv 2205.13542), mmdet3d's projects/BEVFusion at open-mmlab/mmdetection3d@fe25f7a.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.models.bevfusion.bev import SECOND, SECONDFPN, ConvFuser
from bevkd_deploy.models.bevfusion.depth_lss import DepthLSSTransform
from bevkd_deploy.models.bevfusion.image_neck import GeneralizedLSSFPN
from bevkd_deploy.models.bevfusion.sparse_encoder import SparseEncoder
from bevkd_deploy.models.bevfusion.swin import SwinTransformer
from bevkd_deploy.models.bevfusion.transfusion_head import BoxCoding, TransFusionHead
from bevkd_deploy.models.bevfusion.voxels import Voxelization
from bevkd_deploy.models.detector import IMAGE_MEAN, IMAGE_STD
from bevkd_deploy.models.network import Boxes, DetectionNetwork
from bevkd_deploy.models.resnet import ResNet

CameraBackbone = Literal["swin_t", "resnet50"]
ImageChannels = Literal["bgr", "rgb"]

CAMERA_CHANNELS = 80
LIDAR_CHANNELS = 256


class BevFusion(DetectionNetwork):
    """Camera+LiDAR or LiDAR-alone BEVFusion under the teacher contract.

    Args:
        geometry: range, voxels, images and classes the weights were trained for.
        camera: image backbone; None for a LiDAR-alone network, which has no camera modules and no `fusion_layer`.
        image_channels: order in which the weights expect the channels. mmdet3d's configuration feeds BGR images but
            subtracts the RGB mean, so its weights take "bgr"; mit-han-lab's take "rgb".
        cameras: channels in the order of the images; any order gives the same map. Not looked at without `camera`.
        box_coding: whose boxes the head's weights speak, see `transfusion_head.BoxCoding`.

    Attributes:
        spec: what it is fed and what its maps cover.
    """

    spec: SensorSpec
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        geometry: BevFusionGeometry,
        camera: CameraBackbone | None,
        image_channels: ImageChannels = "bgr",
        cameras: tuple[str, ...] = CAMERA_NAMES,
        box_coding: BoxCoding = "mmdet3d",
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.image_channels: ImageChannels = image_channels
        self.spec = sensor_spec(geometry, cameras if camera else ())
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)
        self.pts_voxel_layer = Voxelization(geometry)
        self.pts_middle_encoder = SparseEncoder(geometry)
        if camera:
            self.img_backbone = SwinTransformer() if camera == "swin_t" else ResNet("resnet50", 64, first_stride=8)
            self.img_neck = GeneralizedLSSFPN(self.img_backbone.out_channels)
            self.view_transform = DepthLSSTransform(geometry, out_channels=CAMERA_CHANNELS)
            self.fusion_layer = ConvFuser((CAMERA_CHANNELS, LIDAR_CHANNELS), LIDAR_CHANNELS)
        self.pts_backbone = SECOND(LIDAR_CHANNELS)
        self.pts_neck = SECONDFPN()
        self.bbox_head = TransFusionHead(self.pts_neck.out_channels, geometry, box_coding)

    def forward(
        self, points: Tensor, point_count: Tensor, images: Tensor | None = None, **calibration: Tensor
    ) -> dict[str, Tensor]:
        """A batch of sensor inputs -> heatmap and boxes.

        Args:
            points: float32 [B, P, 5]; this and the rest as `contracts.sensor_spec` describes them.
            point_count: int64 [B].
            images: uint8 RGB [B, N, H, W, 3]; absent without cameras.
            calibration: the matrices, by name; not looked at without cameras.

        Returns:
            heatmap [B, K, X, Y] (class logits), boxes [B, Q, 9] (augmented lidar frame), scores [B, Q] descending,
            labels int64 [B, Q]. A score of 0 is no detection.

        Raises:
            DataError: the images are not those of `spec`.
        """
        bev = self._lidar_bev(points, point_count)
        if self.spec.cameras:
            bev = self.fusion_layer([self._camera_bev(images, points, point_count, calibration), bev])
        (maps,) = self.bbox_head(self.pts_neck(self.pts_backbone(bev)))[0]
        boxes, scores, labels = self.bbox_head.decode(maps)
        return {"heatmap": maps["dense_heatmap"], "boxes": boxes, "scores": scores, "labels": labels}

    def decode(self, maps: dict[str, Tensor]) -> Boxes:
        """The boxes that `forward` returned; scores are descending."""
        return maps["boxes"], maps["scores"], maps["labels"].long()  # a frozen teacher hands every map on as floats

    def _lidar_bev(self, points: Tensor, point_count: Tensor) -> Tensor:
        """Points -> [B, LIDAR_CHANNELS, X, Y]."""
        voxels = self.pts_voxel_layer(points, point_count)
        bev: Tensor = self.pts_middle_encoder(voxels.mean(), voxels.frame_coordinates(), len(points))
        return bev

    def _camera_bev(
        self, images: Tensor | None, points: Tensor, point_count: Tensor, calibration: dict[str, Tensor]
    ) -> Tensor:
        """Images, and the points for their depth -> [B, CAMERA_CHANNELS, X, Y]."""
        shape = (len(points), len(self.spec.cameras), self.spec.image_height_px, self.spec.image_width_px, 3)
        if images is None or tuple(images.shape) != shape:
            got = "none" if images is None else str(list(images.shape))
            raise DataError(
                f"a BEVFusion of {len(self.spec.cameras)} cameras needs images {list(shape)}, got {got}; "
                "prepare them by the network's `spec`"
            )
        levels = self.img_neck(self.img_backbone(self._normalised(images)))
        features = levels[0].unflatten(0, shape[:2])  # [B, N, C, h, w]
        bev: Tensor = self.view_transform(features, points, point_count, **calibration)
        return bev

    def _normalised(self, images: Tensor) -> Tensor:
        """uint8 RGB [B, N, H, W, 3] -> [B * N, 3, H, W] in the channel order of the weights."""
        flat = images.flatten(0, 1).permute(0, 3, 1, 2)
        if self.image_channels == "bgr":
            flat = flat.flip(1)
        return (flat.to(self.image_mean.dtype) - self.image_mean) / self.image_std


def sensor_spec(geometry: BevFusionGeometry, cameras: tuple[str, ...]) -> SensorSpec:
    """What a BEVFusion of this geometry is fed; without cameras for a LiDAR-alone one."""
    height, width = geometry.image_size_px if cameras else (0, 0)
    return SensorSpec(
        cameras=cameras,
        image_height_px=height,
        image_width_px=width,
        image_scale=geometry.image_scale if cameras else None,
        range_m=geometry.range_m,
        bev_cell_m=geometry.bev_cell_m,
        axis_order="xy",
        classes=geometry.classes,
        top_k=geometry.proposals,
    )
