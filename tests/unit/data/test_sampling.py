"""The order of training: permutations, and class-balanced draws against mmdet3d's formula and by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sampling import ClassBalance, EpochSampler
from bevkd_deploy.geometry.calibration import Calibration

NO_CAMERAS = Calibration((), np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), ())

#: Frame by frame, the classes it shows; class 7 has no points, class 5 is shown twice in one frame.
FRAMES = [(0,), (0, 5, 5), (0,), (0,), (0, 9), (7,), ()]


def frame(labels: tuple[int, ...]) -> Sample:
    return Sample(
        token="t", scene="s", timestamp_s=0.0, image_paths={}, points_path=Path("none"), calibration=NO_CAMERAS,
        lidar2ego=np.eye(4), ego2global=np.eye(4), boxes=np.ones((len(labels), 9)),
        labels=np.array(labels, dtype=np.int64), num_points=np.array([0 if label == 7 else 3 for label in labels]),
        attributes=("",) * len(labels),
    )  # fmt: skip


SAMPLES = [frame(labels) for labels in FRAMES]


def frames_of(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.begin(epoch)
    return [position % sampler.length for position in sampler]


def test_epochs_are_permutations_that_count_on() -> None:
    sampler = EpochSampler(5, seed=3, repeat=2)
    assert len(sampler) == 10
    epochs = []
    for epoch in range(3):
        sampler.begin(epoch)
        positions = list(sampler)
        assert sorted(positions) == list(range(10 * epoch, 10 * epoch + 10))
        epochs.append(positions)
    turns = [tuple(position % 5 for position in epoch[half : half + 5]) for epoch in epochs for half in (0, 5)]
    assert all(sorted(turn) == [0, 1, 2, 3, 4] for turn in turns)
    assert len(set(turns)) > 3
    again = EpochSampler(5, seed=3, repeat=2)
    again.begin(2)
    assert list(again) == epochs[2]
    assert list(EpochSampler(5, seed=4, repeat=2)) != epochs[0]


def test_balance_by_hand() -> None:
    # Class 0 is shown by 5 frames, 5 by one and 9 by one: 7 in all, 3 classes, 7 // 3 = 2 draws each.
    balance = ClassBalance(SAMPLES)
    assert {label: frames.tolist() for label, frames in balance.frames_of.items()} == {
        0: [0, 1, 2, 3, 4],
        5: [1],
        9: [4],
    }
    assert (balance.draws_per_class, len(balance)) == (2, 6)
    drawn = Counter(int(index) for seed in range(2000) for index in balance.draw(np.random.default_rng(seed)))
    # Two draws of frame 1 for class 5, and 2 / 5 for class 0; the same for frame 4 with class 9; 2 / 5 for the others.
    expected = {0: 0.4, 1: 2.4, 2: 0.4, 3: 0.4, 4: 2.4}
    assert drawn.keys() == expected.keys()
    for index, per_pass in expected.items():
        assert drawn[index] / 2000 == pytest.approx(per_pass, abs=0.06)


def test_balance_is_the_rule_of_mmdet3d() -> None:
    rng = np.random.default_rng(0)
    samples = [frame(tuple(np.flatnonzero(rng.random(7) < [0.9, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02]))) for _ in range(400)]
    counts = np.array([sum(label in sample.labels for sample in samples) for label in range(7)])
    assert counts.min() > 0
    # CBGSDataset: ratio = (1 / C) / (n_c / N), and int(n_c * ratio) draws of each class.
    ratios = (1 / 7) / (counts / counts.sum())
    balance = ClassBalance(samples)
    assert abs(balance.draws_per_class - int(counts[0] * ratios[0])) <= 1
    shown = np.zeros(7)
    for seed in range(40):
        for index in balance.draw(np.random.default_rng(seed)):
            shown[samples[index].labels] += 1
    # A frame drawn for one class shows others too. Expected: the sum over frames of their draws.
    weight = [sum(balance.draws_per_class / counts[label] for label in sample.labels) for sample in samples]
    for label in range(7):
        expected = sum(w for w, sample in zip(weight, samples, strict=True) if label in sample.labels)
        assert shown[label] / 40 == pytest.approx(expected, rel=0.05)
        assert shown[label] / 40 >= balance.draws_per_class  # each class at least as often as asked for


def test_no_class_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="class_balanced needs frames with objects; none of 2 has any"):
        ClassBalance([frame(()), frame((7,))])


def test_balanced_epochs_count_on_and_are_drawn_afresh() -> None:
    train = TrainConfig(epochs=3, class_balanced=True, repeat=2)
    sampler = EpochSampler.of_training(SAMPLES, train, seed=3)
    assert len(sampler) == 12
    positions = []
    for epoch in range(3):
        sampler.begin(epoch)
        positions.append(list(sampler))
        assert all(12 * epoch <= position // 7 < 12 * (epoch + 1) for position in positions[-1])
        assert {position % 7 for position in positions[-1]} <= {0, 1, 2, 3, 4}
    flat = [position for epoch in positions for position in epoch]
    assert len(set(flat)) == 36, "each draw of a frame has an augmentation of its own"
    assert flat == sorted(flat)
    assert len({tuple(position % 7 for position in epoch) for epoch in positions}) == 3
    again = EpochSampler.of_training(SAMPLES, train, seed=3)
    again.begin(2)  # a resumed run starts here
    assert list(again) == positions[2]
    assert frames_of(EpochSampler.of_training(SAMPLES, train, seed=4), 0) != frames_of(again, 0)


@pytest.mark.parametrize("class_balanced", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.75, 1.0])
def test_a_part_of_the_training_ends_at_a_position(class_balanced: bool, fraction: float) -> None:
    train = TrainConfig(epochs=4, class_balanced=class_balanced, repeat=2)
    sampler = EpochSampler.of_training(SAMPLES, train, seed=0)
    until = sampler.first_position_after(fraction * 4)
    for epoch in range(4):
        sampler.begin(epoch)
        before = [position < until for position in sampler]
        assert before == [epoch < fraction * 4] * len(sampler)


def test_plain_training_takes_each_frame_once_a_pass() -> None:
    sampler = EpochSampler.of_training(SAMPLES, TrainConfig(epochs=1), seed=0)
    assert sorted(frames_of(sampler, 0)) == list(range(7))
