"""The border to mmdet3d's boxes and labels: bottom centre there, geometric centre here; order of classes by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from numpy.typing import NDArray
from torch import Tensor

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.suggest import did_you_mean

#: Columns with a velocity: x, y, z, l, w, h, yaw, vx, vy.
_COLUMNS = 9


def from_lidar_boxes(boxes: LiDARInstance3DBoxes) -> NDArray[np.float64]:
    """Boxes [N, 9], geometric centre; the velocity is NaN where mmdet3d's boxes have none.

    A velocity that was NaN in the info file is 0 here: mmdet3d's NuScenesDataset overwrites it.

    Raises:
        UsageError: they are boxes of another frame.
    """
    if not isinstance(boxes, LiDARInstance3DBoxes):
        raise UsageError(
            f"BevkdInputs takes boxes of the LiDAR frame, got {type(boxes).__name__}; set box_type_3d='LiDAR' in the "
            "dataset"
        )
    found = np.full((len(boxes), _COLUMNS), np.nan)
    columns = boxes.tensor.shape[1]
    found[:, :columns] = boxes.tensor.detach().cpu().numpy()
    found[:, :3] = boxes.gravity_center.detach().cpu().numpy()
    return found


def to_lidar_boxes(boxes: Tensor | NDArray[np.floating]) -> LiDARInstance3DBoxes:
    """Boxes [N, 9] with the geometric centre as mmdet3d's, which stand on their bottom centre."""
    tensor = torch.as_tensor(boxes, dtype=torch.float32)
    return LiDARInstance3DBoxes(tensor, box_dim=_COLUMNS, origin=(0.5, 0.5, 0.5))


def label_map(source: Sequence[str], target: Sequence[str]) -> NDArray[np.int64]:
    """For each class of `source` its index in `target`, by name; -1 where `target` does not have it."""
    return np.array([target.index(name) if name in target else -1 for name in source], dtype=np.int64)


def require_classes(asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The dataset's classes, all of which the student must know.

    Raises:
        UsageError: one is not known, or comes twice.
    """
    strangers = [name for name in asked if name not in known]
    if strangers:
        raise UsageError(
            f"BevkdInputs: the student has no class {strangers[0]!r}.{did_you_mean(strangers[0], known)} It detects "
            f"{', '.join(known)}; leave other classes out of the dataset with metainfo=dict(classes=...)"
        )
    if len(set(asked)) != len(asked) or not asked:
        raise UsageError(f"BevkdInputs: classes must be different names, at least one, got {list(asked)}")
    return tuple(asked)
