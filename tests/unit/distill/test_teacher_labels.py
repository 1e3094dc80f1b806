"""Teacher boxes as labels, worked out by hand on a grid of 12 rows and 16 columns of 2 m."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import LabelsConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.distill.teacher_labels import TeacherLabels
from bevkd_deploy.models.detection_loss import detection_losses
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.teachers.frozen import FrozenTeacher

CAR = [5.3, -3.1, -0.7, 4.0, 2.0, 1.5, 2.2, 1.5, -0.5]  # row 4, column 10
BUS = [-9.0, 7.0, 0.3, 10.0, 2.7, 3.2, -1.0, 0.0, 0.4]  # row 9, column 3
Boxes = list[tuple[list[float], float, str]]


def truth_of(spec: GraphSpec, *frames: dict[str, list[float]]) -> dict[str, Tensor]:
    made = []
    for objects in frames:
        boxes = np.array(list(objects.values()), dtype=np.float64).reshape(-1, 9)
        labels = np.array([CLASS_NAMES.index(name) for name in objects], dtype=np.int64)
        made.append(center_targets(boxes, labels, spec, 1))
    return {key: torch.from_numpy(np.stack([frame[key] for frame in made])) for key in made[0]}


def detections(*frames: Boxes, classes: tuple[str, ...] = CLASS_NAMES) -> tuple[Tensor, Tensor, Tensor]:
    """Decoder output of as many rows a frame as the longest one has, padded with scores of 0."""
    rows = max(1, max(len(frame) for frame in frames))
    boxes, scores = torch.zeros(len(frames), rows, 9), torch.zeros(len(frames), rows)
    labels = torch.zeros(len(frames), rows, dtype=torch.int32)
    for index, frame in enumerate(frames):
        for row, (box, score, name) in enumerate(frame):
            boxes[index, row], scores[index, row] = torch.tensor(box), score
            labels[index, row] = classes.index(name)
    return boxes, scores, labels


def added(targets: dict[str, Tensor], truth: dict[str, Tensor], frame: int = 0) -> dict[str, Tensor]:
    """The rows that were added to a frame."""
    rows = truth["cell"].shape[1]
    return {key: targets[key][frame, rows:] for key in ("cell", "values", "mask")}


def labels_for(spec: GraphSpec, classes: tuple[str, ...] = CLASS_NAMES, **options: Any) -> TeacherLabels:
    return TeacherLabels(LabelsConfig(**options), spec, classes, 1)


def moved(box: list[float], x_m: float, y_m: float = 0.0) -> list[float]:
    return [box[0] + x_m, box[1] + y_m, *box[2:]]


def test_a_new_box_becomes_a_label(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {"car": CAR})
    before = {key: value.clone() for key, value in truth.items()}
    targets = labels_for(tiny_spec)(truth, *detections([(BUS, 0.8, "bus")]))
    alone = truth_of(tiny_spec, {"bus": BUS})
    new = added(targets, truth)
    assert new["cell"].tolist() == [9 * 16 + 3]
    assert torch.allclose(new["values"][0], alone["values"][0, 0], atol=1e-6)
    assert new["mask"].tolist() == [pytest.approx([0.8] * 10)]
    assert torch.equal(targets["heatmap"], torch.maximum(truth["heatmap"], alone["heatmap"]))
    assert targets["heatmap"][0, CLASS_NAMES.index("bus"), 9, 3] == 1
    assert all(torch.equal(truth[key], value) for key, value in before.items())
    rows = truth["cell"].shape[1]
    assert all(torch.equal(targets[key][:, :rows], truth[key]) for key in ("cell", "label", "values", "mask"))
    assert targets["label"][0, rows:].tolist() == [CLASS_NAMES.index("bus")]
    assert {key: value.dtype for key, value in targets.items()} == {key: value.dtype for key, value in truth.items()}


def test_a_peak_as_high_as_its_score_is_no_object_of_the_detection_loss(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {"car": CAR})
    found = detections([(BUS, 0.8, "bus")])
    targets = labels_for(tiny_spec, peaks="score")(truth, *found)
    full = labels_for(tiny_spec)(truth, *found)
    bus = CLASS_NAMES.index("bus")
    assert torch.allclose(targets["heatmap"][0, bus], 0.8 * full["heatmap"][0, bus])
    assert (targets["heatmap"] == 1).sum() == 1
    assert (full["heatmap"] == 1).sum() == 2
    assert torch.equal(targets["mask"], full["mask"])


def test_a_low_score_is_no_label(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {"car": CAR})
    found = detections([(BUS, 0.8, "bus"), (moved(CAR, -9), 0.24, "car"), (moved(CAR, 0, 9), 0.26, "car")])
    assert added(labels_for(tiny_spec)(truth, *found), truth)["mask"][:, 0].tolist() == pytest.approx([0.8, 0.26])
    assert added(labels_for(tiny_spec, min_score=0.9)(truth, *found), truth)["cell"].tolist() == []


@pytest.mark.parametrize(
    ("box", "name", "is_new"),
    [
        (CAR, "car", False),
        (moved(CAR, 1.4, 1.4), "car", False),  # 1.98 m
        (moved(CAR, 1.5, 1.4), "car", True),  # 2.05 m
        (CAR, "truck", True),  # another class
    ],
)
def test_what_the_truth_has_is_not_added(tiny_spec: GraphSpec, box: list[float], name: str, is_new: bool) -> None:
    truth = truth_of(tiny_spec, {"car": CAR, "bus": BUS})
    targets = labels_for(tiny_spec)(truth, *detections([(box, 0.7, name)]))
    assert added(targets, truth)["cell"].numel() == int(is_new)


def test_a_confusion_of_classes_is_no_label_where_that_is_asked_for(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {"car": CAR})
    found = detections([(CAR, 0.7, "truck"), (moved(CAR, 1.5, 1.4), 0.6, "truck"), (BUS, 0.5, "bus")])
    assert added(labels_for(tiny_spec)(truth, *found), truth)["mask"][:, 0].tolist() == pytest.approx([0.7, 0.6, 0.5])
    strict = labels_for(tiny_spec, match="any")(truth, *found)
    assert added(strict, truth)["mask"][:, 0].tolist() == pytest.approx([0.6, 0.5])


def test_objects_of_two_classes_in_one_cell_are_both_known(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {"car": CAR, "pedestrian": CAR})
    found = detections([(CAR, 0.7, "car"), (CAR, 0.7, "pedestrian"), (CAR, 0.7, "bicycle")])
    targets = labels_for(tiny_spec)(truth, *found)
    assert added(targets, truth)["cell"].numel() == 1


def test_frames_of_a_batch_do_not_mix(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {"car": CAR}, {"bus": BUS})
    both = [(CAR, 0.5, "car"), (BUS, 0.9, "bus"), (moved(BUS, 6), 0.6, "bus")]
    targets = labels_for(tiny_spec)(truth, *detections(both, both))
    assert added(targets, truth, 0)["mask"][:, 0].tolist() == pytest.approx([0.9, 0.6])
    assert added(targets, truth, 1)["mask"][:, 0].tolist() == pytest.approx([0.6, 0.5])
    one = labels_for(tiny_spec)({key: value[1:] for key, value in truth.items()}, *detections(both))
    assert torch.equal(one["heatmap"], targets["heatmap"][1:])
    assert torch.equal(one["values"], targets["values"][1:])


def test_classes_go_by_name_and_unknown_ones_are_left_out(tiny_spec: GraphSpec) -> None:
    teacher = ("dragon", *CLASS_NAMES[::-1])
    truth = truth_of(tiny_spec, {"car": CAR})
    found = detections([(CAR, 0.9, "car"), (BUS, 0.8, "bus"), (moved(BUS, 6), 0.7, "dragon")], classes=teacher)
    targets = labels_for(tiny_spec, teacher)(truth, *found)
    assert added(targets, truth)["cell"].tolist() == [9 * 16 + 3]
    assert targets["heatmap"][0, CLASS_NAMES.index("bus"), 9, 3] == 1


def test_boxes_outside_the_students_range_are_left_out(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {})
    found = detections([(moved(BUS, -8), 0.9, "bus"), (moved(BUS, 0, 6), 0.9, "bus"), (CAR, 0.3, "car")])
    targets = labels_for(tiny_spec)(truth, *found)
    assert added(targets, truth)["mask"][:, 0].tolist() == pytest.approx([0.3])
    assert added(targets, truth)["cell"].tolist() == [4 * 16 + 10]


def test_more_boxes_than_slots_keep_the_surest(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {})
    scores = np.linspace(0.3, 0.9, 300)
    found = detections([(CAR, float(score), "car") for score in scores])
    mask = added(labels_for(tiny_spec)(truth, *found), truth)["mask"]
    assert mask.shape[0] == 256
    assert mask[:, 0].tolist() == pytest.approx(scores[::-1][:256].tolist())


def test_nothing_found_changes_nothing(tiny_spec: GraphSpec) -> None:
    truth = truth_of(tiny_spec, {"car": CAR}, {})
    targets = labels_for(tiny_spec)(truth, *detections([], []))
    assert all(torch.equal(targets[key], truth[key]) for key in truth)


def test_labels_weigh_as_their_score_in_the_box_loss(tiny_spec: GraphSpec) -> None:
    """An object that is off by 1 in z and a label that is off by 4, at score 0.5: (1 + 0.5 * 4) / 1.5."""
    truth = truth_of(tiny_spec, {"car": CAR})
    targets = labels_for(tiny_spec)(truth, *detections([(BUS, 0.5, "bus")]))
    values = torch.zeros(1, 10, 192)
    rows = truth["cell"].shape[1]
    for slot, off in ((0, 1.0), (rows, 4.0)):
        values[0, :, targets["cell"][0, slot]] = targets["values"][0, slot]
        values[0, 2, targets["cell"][0, slot]] += off
    parts = values.view(1, 10, 12, 16).split([2, 1, 3, 2, 2], dim=1)
    maps = dict(zip(("reg", "height", "dim", "rot", "vel"), parts, strict=True))
    losses = detection_losses({**maps, "heatmap": torch.zeros(1, 10, 12, 16)}, targets)
    assert losses["box_loss"].item() == pytest.approx(0.25 * 3 / 1.5, rel=1e-5)


def test_decoding_leaves_the_maps_alone(
    tiny_model_config: Callable[..., ModelConfig], tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    teacher = build_detector(tiny_model_config(), tiny_spec, 0).eval()
    with torch.no_grad():
        maps = teacher(**batch["inputs"]["student"])
    teacher.bbox_head.decode = _spoil(teacher.bbox_head.decode)
    before = {name: value.clone() for name, value in maps.items()}
    boxes, scores, labels = FrozenTeacher(teacher, teacher.spec).boxes(maps)
    assert boxes.shape == (2, 20, 9) and scores.shape == labels.shape == (2, 20)
    assert all(torch.equal(maps[name], value) for name, value in before.items())


def _spoil(decode: Callable[..., Any]) -> Callable[..., Any]:
    """A decoder that writes into its maps, as mmdet3d's does."""

    def spoiling(maps: dict[str, Tensor]) -> Any:
        result = decode(maps)
        for value in maps.values():
            value.zero_()
        return result

    return spoiling
