"""Reading the heads of mmdet3d: dense class logits, dense box maps and decoded boxes in our conventions.

| family | maps | heatmap |
|---|---|---|
| CenterHead | [y, x] | logits of all tasks, one after the other; with the maps of `BOX_MAPS` |
| TransFusionHead (projects/BEVFusion) | [x, y] | its `dense_heatmap` |
| Anchor3DHead | [y, x] | class logit of the best anchor of each cell: where an anchor fits, not a centre |

Decoding is the head's own `predict_by_feat`, on copies: mmdet3d's heads and box coders write into what they are given.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.sensor_spec import AxisOrder
from bevkd_deploy.models.center_head import BOX_MAPS

#: Values of a decoded box: x, y, z, l, w, h, yaw, vx, vy.
_BOX_SIZE = 9


@dataclass(frozen=True)
class HeadFacts:
    """What a head's configuration says.

    Attributes:
        label_count: classes that it tells apart.
        max_boxes: of a frame.
        class_names: in the order of its labels, where it names them.
        stride: voxels along a cell of its maps, where it says so.
        origin_m, voxel_m: lower edges of x and y, and sides of a voxel, where it repeats them.
    """

    label_count: int
    max_boxes: int
    class_names: tuple[str, ...] | None = None
    stride: int | None = None
    origin_m: tuple[float, ...] | None = None
    voxel_m: tuple[float, ...] | None = None


class HeadReader(ABC):
    """One head family: what its outputs mean.

    Attributes:
        family: its name in mmdet3d.
        axis_order: of its maps.
        head: the module.
        facts: of its configuration.
    """

    family: ClassVar[str]
    axis_order: ClassVar[AxisOrder]

    def __init__(self, head: Any, facts: HeadFacts) -> None:
        self.head = head
        self.facts = facts

    @abstractmethod
    def maps(self, outputs: Any) -> dict[str, Tensor]:
        """Raw outputs -> "heatmap" [B, K, ., .] and, where it has them, the maps of BOX_MAPS; outputs stay."""

    def run(self, features: Any, metas: Sequence[Mapping[str, Any]]) -> Any:
        """The head's raw outputs; called as a module, so that hooks on it fire."""
        return self.head(features)

    def predict(self, outputs: Any, metas: Sequence[Mapping[str, Any]]) -> Any:
        """The head's own decoding of raw outputs, which it may write into: instances of each frame."""
        _reset_coder(self.head.bbox_coder)
        with warnings.catch_warnings():
            # Its coder copies its range into a tensor at each task, and PyTorch tells it how: theirs to mend.
            warnings.filterwarnings("ignore", message="To copy construct from a tensor")
            return self.head.predict_by_feat(outputs, metas)


class CenterHeadReader(HeadReader):
    """CenterPoint's head: a heatmap and box maps a task."""

    family = "CenterHead"
    axis_order = "yx"

    def __init__(self, head: Any) -> None:
        _need_velocity(self.family, head.bbox_coder.code_size == _BOX_SIZE)
        names = tuple(name for task in head.class_names for name in task)
        boxes = len(head.class_names) * int(head.test_cfg["post_max_size"])
        super().__init__(head, HeadFacts(len(names), boxes, names, **_coder_grid(head.bbox_coder)))

    def maps(self, outputs: Any) -> dict[str, Tensor]:
        """The heatmaps of all tasks, and in each cell the box maps of the task with the highest heat."""
        tasks = [task[0] for task in outputs]  # one level
        highest = torch.stack([task["heatmap"].amax(dim=1) for task in tasks])  # [tasks, B, Y, X]
        best = highest.argmax(dim=0)[None, :, None]
        maps = {"heatmap": torch.cat([task["heatmap"] for task in tasks], dim=1)}
        for name in BOX_MAPS:
            by_task = torch.stack([task[name] for task in tasks])  # [tasks, B, C, Y, X]
            maps[name] = torch.gather(by_task, 0, best.expand(-1, -1, by_task.shape[2], -1, -1))[0]
        if not self.head.norm_bbox:
            maps["dim"] = maps["dim"].log()
        return maps


class TransFusionHeadReader(HeadReader):
    """The head of mmdet3d's projects/BEVFusion: queries from the peaks of a dense heatmap."""

    family = "TransFusionHead"
    axis_order = "xy"

    def __init__(self, head: Any) -> None:
        _need_velocity(self.family, head.bbox_coder.code_size == _BOX_SIZE + 1)  # the yaw takes two
        grid = _coder_grid(head.bbox_coder)
        super().__init__(head, HeadFacts(int(head.num_classes), int(head.num_proposals), **grid))

    def run(self, features: Any, metas: Sequence[Mapping[str, Any]]) -> Any:
        """This head is called with the frames' metadata too."""
        return self.head(features, metas)

    def maps(self, outputs: Any) -> dict[str, Tensor]:
        """The dense heatmap; boxes belong to queries here, not to cells."""
        return {"heatmap": outputs[0][0]["dense_heatmap"]}


class AnchorHeadReader(HeadReader):
    """PointPillars' and SECOND's head: anchors of several sizes and headings in each cell, on one or more levels.

    Anchors are spread over a range of their own, at nuScenes 0.4 m narrower than the voxels' on each side: towards the
    edges they stand up to that far from the centre of their cell.
    """

    family = "Anchor3DHead"
    axis_order = "yx"

    def __init__(self, head: Any) -> None:
        _need_velocity(self.family, head.box_code_size == _BOX_SIZE)
        if not head.use_sigmoid_cls:
            raise UsageError("an Anchor3DHead with softmax scores has no class logits; only use_sigmoid=True is known")
        super().__init__(head, HeadFacts(int(head.num_classes), int(head.test_cfg["max_num"])))

    def maps(self, outputs: Any) -> dict[str, Tensor]:
        """The best anchor's class logits in each cell of the finest level."""
        scores: Sequence[Tensor] = outputs[0]  # a level each, [B, anchors * K, Y, X], classes fastest
        finest = scores[0].shape[-2:]
        levels = []
        for level in scores:
            best = level.unflatten(1, (-1, self.head.num_classes)).amax(dim=1)
            # A coarse anchor covers all cells below it.
            levels.append(torch.nn.functional.interpolate(best, size=finest, mode="nearest"))
        return {"heatmap": torch.stack(levels).amax(dim=0)}

    def predict(self, outputs: Any, metas: Sequence[Mapping[str, Any]]) -> Any:
        """This head takes its outputs one by one."""
        return self.head.predict_by_feat(*outputs, batch_input_metas=metas)

    def anchor_ranges_m(self) -> list[tuple[float, ...]]:
        """(x_min, y_min, z_min, x_max, y_max, z_max) over which each kind of anchor is spread."""
        return [tuple(float(edge) for edge in edges) for edges in self.head.prior_generator.ranges]


def head_reader(detector: Any) -> HeadReader:
    """The reader of a detector's 3-D head.

    Raises:
        UsageError: it is of no known family, or boxes are refined in a second stage.
    """
    from mmdet3d.models.dense_heads import Anchor3DHead, CenterHead

    head = getattr(detector, "pts_bbox_head", None) or getattr(detector, "bbox_head", None)
    if getattr(detector, "roi_head", None) is None and head is not None:
        if isinstance(head, CenterHead):
            return CenterHeadReader(head)
        # It is defined outside of mmdet3d's package, in a project that may lie anywhere.
        if any(base.__name__ == TransFusionHeadReader.family for base in type(head).__mro__):
            return TransFusionHeadReader(head)
        # Subclasses that lay their outputs out in another way have a forward_single of their own.
        if isinstance(head, Anchor3DHead) and type(head).forward_single is Anchor3DHead.forward_single:
            return AnchorHeadReader(head)
    known = ", ".join(reader.family for reader in (CenterHeadReader, TransFusionHeadReader, AnchorHeadReader))
    found = "a second stage (roi_head)" if getattr(detector, "roi_head", None) is not None else type(head).__name__
    raise UsageError(
        f"{type(detector).__name__} has {found}; the adapter reads single-stage detectors whose head is one of {known}"
    )


def copied(outputs: Any) -> Any:
    """A nested output with every tensor cloned, in float32: what decoding may write into."""
    if isinstance(outputs, Tensor):
        return outputs.detach().float().clone()
    if isinstance(outputs, Mapping):
        return {key: copied(value) for key, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(copied(value) for value in outputs)
    return outputs


def padded_boxes(instances: Sequence[Any], count: int) -> dict[str, Tensor]:
    """mmdet3d's predictions -> boxes [B, Q, 9], scores [B, Q] descending, labels [B, Q] int64; Q is `count`.

    mmdet3d's boxes stand on their bottom centre, ours on the geometric one; yaw is counter-clockwise from +x in both.
    Frames with fewer boxes are filled up with zeros, score 0.
    """
    first = instances[0].bboxes_3d.tensor
    boxes = first.new_zeros(len(instances), count, _BOX_SIZE)
    scores = first.new_zeros(len(instances), count)
    labels = torch.zeros(len(instances), count, dtype=torch.int64, device=first.device)
    for row, found in enumerate(instances):
        order = torch.argsort(found.scores_3d, descending=True, stable=True)[:count]
        theirs = found.bboxes_3d
        ours = torch.cat([theirs.gravity_center, theirs.tensor[:, 3:]], dim=1)
        boxes[row, : len(order)] = ours[order]
        scores[row, : len(order)] = found.scores_3d[order]
        labels[row, : len(order)] = found.labels_3d[order].long()
    return {"boxes": boxes, "scores": scores, "labels": labels}


def _need_velocity(family: str, has_velocity: bool) -> None:
    if not has_velocity:
        raise UsageError(
            f"this {family} predicts no velocity, and students are trained on boxes with one: use a configuration for "
            "nuScenes (box codes with vx, vy)"
        )


def _coder_grid(coder: Any) -> dict[str, Any]:
    """Facts of a box coder that turns cells into metres."""
    origin_m = tuple(float(edge) for edge in coder.pc_range[:2])
    voxel_m = tuple(float(side) for side in coder.voxel_size[:2])
    return {"stride": int(coder.out_size_factor), "origin_m": origin_m, "voxel_m": voxel_m}


def _reset_coder(coder: Any) -> None:
    """Undo what decoding does to its box coder: a range that became a tensor, which the next call would warn about."""
    if isinstance(coder.post_center_range, Tensor):
        coder.post_center_range = coder.post_center_range.tolist()
