"""The teacher's boxes as further labels of the student."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import LabelsConfig
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.geometry.grid import BevGrid

_SAME_OBJECT_M = 2.0

Targets = dict[str, Tensor]


class TeacherLabels:
    """Adds to the targets what the teacher sees and the ground truth lacks.

    A box of the teacher becomes a label when its score is high enough and no ground-truth object of its class lies
    within 2 m (`match: any`: of any class, so that a confusion of classes is no label). Its regression targets weigh as
    much as its score; its Gaussian is that of an object (`peaks: full`) or scaled by the score (`peaks: score`), which
    keeps the detection loss from calling the place empty without calling it an object.

    Source: SparseKD (arXiv 2205.15156), label KD.
    """

    def __init__(
        self, config: LabelsConfig, spec: GraphSpec, teacher_classes: tuple[str, ...], min_radius_cells: int
    ) -> None:
        """Prepare the conversion.

        Args:
            config: score threshold and kind of peaks.
            spec: the student's geometry and classes.
            teacher_classes: names of the teacher's labels; boxes of other classes than the student's are left out.
            min_radius_cells: smallest Gaussian, as in the student's targets.
        """
        self.config = config
        self.spec = spec
        self.grid = BevGrid.bev(spec)
        self.min_radius_cells = min_radius_cells
        order = [spec.classes.index(name) if name in spec.classes else -1 for name in teacher_classes]
        self._student_class = np.array(order, dtype=np.int64)

    def __call__(self, targets: Targets, boxes: Tensor, scores: Tensor, labels: Tensor) -> Targets:
        """New targets with the teacher's labels behind the ground truth's; the given ones are left as they are.

        Args:
            targets: heatmap [B, K, Y, X], cell and label [B, O], values and mask [B, O, 10] of the ground truth.
            boxes: [B, Q, 9], lidar frame (augmented as the student's), metres.
            scores: [B, Q], 0..1.
            labels: [B, Q], index into the teacher's classes.

        Returns:
            The same keys with O + N rows, N being the most labels that a frame of the batch gets.
        """
        truth = {key: targets[key].cpu().numpy() for key in ("cell", "label", "values")}
        found = boxes.double().cpu().numpy(), scores.double().cpu().numpy(), labels.cpu().numpy()
        added = [
            self._frame_targets({key: value[index] for key, value in truth.items()}, *(part[index] for part in found))
            for index in range(len(boxes))
        ]
        longest = max(int(np.count_nonzero(frame["mask"][:, 0])) for frame in added)
        merged = {}
        for key, value in targets.items():
            stacked = torch.from_numpy(np.stack([frame[key] for frame in added])).to(value)
            if key == "heatmap":
                merged[key] = torch.maximum(value, stacked)
            else:
                merged[key] = torch.cat([value, stacked[:, :longest]], dim=1)
        return merged

    def _frame_targets(
        self,
        truth: dict[str, NDArray[Any]],
        boxes: NDArray[np.float64],
        scores: NDArray[np.float64],
        labels: NDArray[np.integer],
    ) -> dict[str, NDArray[Any]]:
        """Targets of one frame's new labels alone; slot i is the i-th of them by descending score."""
        keep = (scores >= self.config.min_score) & self.grid.locate(boxes[:, :2])[1]
        order = np.flatnonzero(keep)[np.argsort(-scores[keep], kind="stable")]
        order = order[self._student_class[labels[order]] >= 0]
        boxes, scores, classes = boxes[order], scores[order], self._student_class[labels[order]]
        new = ~self._matches(truth, boxes, classes)
        boxes, scores, classes = boxes[new], scores[new], classes[new]
        heights = scores if self.config.peaks == "score" else None
        made = center_targets(boxes, classes, self.spec, self.min_radius_cells, heights)
        slots = min(len(scores), len(made["mask"]))
        made["mask"][:slots] *= scores[:slots, None].astype(np.float32)
        return made

    def _matches(
        self, truth: dict[str, NDArray[Any]], boxes: NDArray[np.float64], classes: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether a ground-truth object, of its class or any, lies within 2 m of each box; bool [N]."""
        real = truth["label"] >= 0
        cell, label, offset = truth["cell"][real], truth["label"][real], truth["values"][real, :2]
        columns = self.grid.shape_yx[1]
        column_row = np.stack([cell % columns, cell // columns], axis=-1) + offset
        center_m = column_row * self.grid.cell_m + (self.grid.x_range_m[0], self.grid.y_range_m[0])
        distance_m = np.linalg.norm(boxes[:, None, :2] - center_m, axis=-1)  # [N, objects]
        same = distance_m < _SAME_OBJECT_M
        if self.config.match == "class":
            same &= label == classes[:, None]
        return np.asarray(same.any(axis=1))
