"""BEVFusion's view transform: image features, lifted along their rays by a depth distribution, summed in BEV cells.

The lifted tensor (cameras * depths * pixels * channels, 640 MB for six cameras of 256x704) is never made. What a cell
holds is a weighted sum of rows of the image features, the weights being depth probabilities: one embedding bag a cell.
It sums in a fixed order, so the result is the same from run to run on every device.

Source: Philion and Fidler 2020 (arXiv 2008.05711), mit-han-lab/bevfusion (arXiv 2205.13542), DepthLSSTransform as in
open-mmlab/mmdetection3d@fe25f7a, projects/BEVFusion/bevfusion/depth_lss.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry

#: Pixels a cell of the depth features; fixed by the strides of `dtransform`.
_STRIDE = 8


class DepthLSSTransform(nn.Module):
    """Lift, splat and coarsen.

    Convention: the BEV map is [B, C, X, Y]: rows along x, columns along y of the (augmented) lidar frame. A pixel of
    the feature map of width w looks through column `linspace(0, W - 1, w)` of the image, likewise for rows.

    `dx`, `bx`, `nx` (cell size, centre of the first cell, number of cells along x, y, z) and `frustum` are under
    mmdet3d's names in the state dict, with the values that mmdet3d constructs for the geometry.
    """

    dx: Tensor
    bx: Tensor
    nx: Tensor
    frustum: Tensor

    def __init__(self, geometry: BevFusionGeometry, in_channels: int = 256, out_channels: int = 80) -> None:
        super().__init__()
        if geometry.feature_stride != _STRIDE:
            raise UsageError(
                f"BEVFusion's view transform reads features of stride {_STRIDE}, got feature_stride "
                f"{geometry.feature_stride}: give the geometry of the checkpoint"
            )
        self.image_size = geometry.image_size_px
        self.out_channels = out_channels
        low, high = geometry.range_m[:2], geometry.range_m[3:5]
        bounds = [(*edges, geometry.camera_cell_m) for edges in zip(low, high, strict=True)]
        bounds.append((*geometry.camera_z_m, geometry.camera_z_m[1] - geometry.camera_z_m[0]))
        self.register_buffer("dx", torch.tensor([size for _, _, size in bounds]))
        self.register_buffer("bx", torch.tensor([start + size / 2 for start, _, size in bounds]))
        self.register_buffer("nx", torch.tensor([round((end - start) / size) for start, end, size in bounds]))
        self.register_buffer("frustum", _frustum(geometry))
        self.depths = self.frustum.shape[0]
        self.dtransform = nn.Sequential(
            *_conv(1, 8, 1, bias=True), *_conv(8, 32, 5, stride=4, bias=True), *_conv(32, 64, 5, stride=2, bias=True)
        )
        self.depthnet = nn.Sequential(
            *_conv(in_channels + 64, in_channels, 3, bias=True),
            *_conv(in_channels, in_channels, 3, bias=True),
            nn.Conv2d(in_channels, self.depths + out_channels, 1),
        )
        self.downsample: nn.Module = nn.Identity()
        if geometry.camera_downsample > 1:
            self.downsample = nn.Sequential(
                *_conv(out_channels, out_channels, 3),
                *_conv(out_channels, out_channels, 3, stride=geometry.camera_downsample),
                *_conv(out_channels, out_channels, 3),
            )

    def forward(
        self,
        features: Tensor,
        points: Tensor,
        point_count: Tensor,
        lidar2img: Tensor,
        cam2img: Tensor,
        cam2lidar: Tensor,
        img_aug: Tensor,
        lidar_aug: Tensor,
    ) -> Tensor:
        """Image features and points -> camera BEV map. The arguments after `features` are of `bevkd.sensors/1`.

        Args:
            features: float32 [B, N, in_channels, h, w], the first level of the image neck.
            points: float32 [B, P, 3 or more].
            point_count: int64 [B].
            lidar2img: float32 [B, N, 4, 4].
            cam2img: float32 [B, N, 4, 4].
            cam2lidar: float32 [B, N, 4, 4]; a camera that is far away, as a missing one is, adds nothing.
            img_aug: float32 [B, N, 4, 4].
            lidar_aug: float32 [B, 4, 4].

        Returns:
            float32 [B, out_channels, X, Y], channels last in memory.

        Raises:
            DataError: a matrix cannot be inverted, or the features are not those of the geometry's images.
        """
        size = tuple(self.frustum.shape[1:3])
        if features.shape[3:] != size:
            raise DataError(
                f"image features are {tuple(features.shape[3:])}, expected {size}: the images must be "
                f"{self.image_size} (height, width), as geometry.image_size_px says"
            )
        with torch.autocast(features.device.type, enabled=False):  # half a metre is lost in half precision
            depth = depth_map(points, point_count, lidar2img, img_aug, lidar_aug, self.image_size)
            probability, context = self._lift(features.float().flatten(0, 1), depth.flatten(0, 1)[:, None])
            entry, cell = self._splat(cam2img, cam2lidar, img_aug, lidar_aug)
            rows, columns = self.nx[:2].tolist()
            bev = _pool(probability, context, entry, cell, len(features) * rows * columns)
            bev = bev.view(len(features), rows, columns, self.out_channels).permute(0, 3, 1, 2)
            coarse: Tensor = self.downsample(bev)
        return coarse

    def _lift(self, features: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Features [BN, C, h, w] and depths [BN, 1, H, W] -> probabilities [BN, D, h, w], context [BN, C', h, w]."""
        lifted = self.depthnet(torch.cat([self.dtransform(depth), features], dim=1))
        return lifted[:, : self.depths].softmax(dim=1), lifted[:, self.depths :]

    def _splat(self, cam2img: Tensor, cam2lidar: Tensor, img_aug: Tensor, lidar_aug: Tensor) -> tuple[Tensor, Tensor]:
        """Which entries of [B, N, D, h, w] are inside of the grid (flat, ascending), and in which of [B, X, Y]."""
        batch, cameras = cam2img.shape[:2]
        # mmdet3d's order of operations: an entry at the border of two cells then falls to the same one.
        undo_aug = _inverse(img_aug[..., :3, :3], "img_aug").flatten(0, 1)
        rotation = (cam2lidar[..., :3, :3] @ _inverse(cam2img[..., :3, :3], "cam2img")).flatten(0, 1)
        aug_shift, shift = img_aug[..., :3, 3:].flatten(0, 1), cam2lidar[..., :3, 3:].flatten(0, 1)
        frustum = self.frustum.flatten(0, 2).T.contiguous()  # [3, D * h * w]
        size, first, (rows, columns) = self.dx[:, None], (self.bx - self.dx / 2)[:, None], self.nx[:2].tolist()
        entries, cells = [], []
        for camera in range(batch * cameras):  # one at a time: the coordinates of all would be 100 MB
            sample = camera // cameras
            position = undo_aug[camera] @ (frustum - aug_shift[camera])
            position = rotation[camera] @ torch.cat([position[:2] * position[2:], position[2:]]) + shift[camera]
            position = lidar_aug[sample, :3, :3] @ position + lidar_aug[sample, :3, 3:]
            place = (position - first) / size
            # mmdet3d truncates towards zero, so what is less than a cell in front of the grid counts as its first row.
            inside = ((place > -1) & (place < self.nx[:, None])).all(dim=0).nonzero().squeeze(1)
            x, y = place[:2, inside].long()
            entries.append(inside + camera * frustum.shape[1])
            cells.append((sample * rows + x) * columns + y)
        return torch.cat(entries), torch.cat(cells)


def depth_map(
    points: Tensor,
    point_count: Tensor,
    lidar2img: Tensor,
    img_aug: Tensor,
    lidar_aug: Tensor,
    image_size: tuple[int, int],
) -> Tensor:
    """Depth of the point that each pixel sees, 0 where it sees none.

    Of several points in a pixel the last one counts. mmdet3d leaves it to an indexed assignment, whose winner torch
    leaves open; on a processor with one thread that is the last. Points behind a camera are at 1e-5 m, as there.

    Args: as `DepthLSSTransform.forward`; `image_size` is (height, width).

    Returns:
        float32 [B, N, H, W], metres along the camera's axis.

    Raises:
        DataError: `lidar_aug` cannot be inverted.
    """
    height, width = image_size
    batch, cameras = lidar2img.shape[:2]
    xyz = (points[..., :3] - lidar_aug[:, None, :3, 3]).transpose(1, 2)  # [B, 3, P]
    xyz = _inverse(lidar_aug[:, :3, :3], "lidar_aug") @ xyz
    image = lidar2img[..., :3, :3] @ xyz[:, None] + lidar2img[..., :3, 3:]  # [B, N, 3, P]
    depth = image[:, :, 2:].clamp(1e-5, 1e5)
    image = torch.cat([image[:, :, :2] / depth, depth], dim=2)
    u, v, _ = (img_aug[..., :3, :3] @ image + img_aug[..., :3, 3:]).unbind(2)  # each [B, N, P]
    real = torch.arange(points.shape[1], device=points.device) < point_count[:, None]  # [B, P]: not padding
    seen = (u >= 0) & (u < width) & (v >= 0) & (v < height) & real[:, None]
    index = seen.flatten().nonzero().squeeze(1)  # ascending: by camera, then in the order of the points
    pixel = v.flatten()[index].long() * width + u.flatten()[index].long()
    pixel += index.div(points.shape[1], rounding_mode="floor") * (height * width)
    last = index.new_full((batch * cameras * height * width,), -1).scatter_reduce(0, pixel, index, "amax")
    return torch.where(last < 0, 0.0, depth.flatten()[last]).view(batch, cameras, height, width)


def _pool(probability: Tensor, context: Tensor, entry: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Sum of probability * context over the entries of each cell, in their order.

    Args:
        probability: [BN, D, h, w].
        context: [BN, C, h, w].
        entry: int64 [E], flat indices of `probability`.
        cell: int64 [E].
        cells: how many there are.

    Returns:
        [cells, C].
    """
    depths, pixels = probability.shape[1], probability.shape[2] * probability.shape[3]
    cell, order = cell.sort(stable=True)
    entry = entry[order]
    row = entry.div(depths * pixels, rounding_mode="floor") * pixels + entry % pixels  # of the table below
    table = context.permute(0, 2, 3, 1).flatten(0, 2)  # [BN * h * w, C]
    start = torch.searchsorted(cell, torch.arange(cells + 1, device=cell.device))
    weight = probability.flatten()[entry]
    return functional.embedding_bag(row, table, start, mode="sum", per_sample_weights=weight, include_last_offset=True)


def _inverse(matrices: Tensor, name: str) -> Tensor:
    """Inverse of [..., 3, 3]; an error that names the first matrix that has none."""
    inverse, info = torch.linalg.inv_ex(matrices)
    broken = ((info != 0) | ~inverse.isfinite().all(dim=-1).all(dim=-1)).nonzero()
    if len(broken):
        place = broken[0].tolist()  # (sample, camera), or (sample,)
        whose = f"sample {place[0]}" + "".join(f", camera {camera}" for camera in place[1:])
        raise DataError(
            f"{name} of {whose} cannot be inverted: {matrices[tuple(place)].tolist()}. A missing camera has the "
            "calibration of one that is far away, not zeros"
        )
    return inverse


def _frustum(geometry: BevFusionGeometry) -> Tensor:
    """(column, row, depth) of every lifted entry, [D, h, w, 3], in pixels of the network's images and metres."""
    height, width = geometry.image_size_px
    depth = torch.arange(*geometry.depth_m, geometry.depth_step_m, dtype=torch.float32)
    row = torch.linspace(0, height - 1, height // geometry.feature_stride)
    column = torch.linspace(0, width - 1, width // geometry.feature_stride)
    depth, row, column = torch.meshgrid(depth, row, column, indexing="ij")
    return torch.stack([column, row, depth], dim=-1)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, bias: bool = False) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
