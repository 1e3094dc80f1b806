"""The result type."""

from __future__ import annotations

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.runtime.detections import Detections


def make_detections() -> Detections:
    boxes = np.arange(27, dtype=np.float32).reshape(3, 9)
    scores = np.array([0.9, 0.5, 0.2], np.float32)
    return Detections(boxes, scores, np.array([1, 0, 1], np.int32), ("car", "pedestrian"))


def test_names_follow_the_labels() -> None:
    assert make_detections().names() == ("pedestrian", "car", "pedestrian")


def test_above_keeps_the_limit_itself_and_every_field() -> None:
    kept = make_detections().above(0.5)
    assert len(kept) == 2
    np.testing.assert_array_equal(kept.boxes, make_detections().boxes[:2])
    assert kept.labels.tolist() == [1, 0]
    assert kept.names() == ("pedestrian", "car")
    assert len(make_detections().above(1.0)) == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ArtifactError, match=r"got \[\[2, 9\], \[3\], \[3\]\]"):
        Detections(np.zeros((2, 9), np.float32), np.zeros(3, np.float32), np.zeros(3, np.int32), ("car",))


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_must_name_a_class(label: int) -> None:
    with pytest.raises(ArtifactError, match="must index 2 classes"):
        Detections(np.zeros((1, 9), np.float32), np.zeros(1, np.float32), np.array([label], np.int32), ("car", "bus"))
