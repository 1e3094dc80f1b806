"""BEV augmentation: one similarity of the ground plane, the same for points and everything else."""

from __future__ import annotations

import numpy as np
import pytest

from bevkd_deploy.contracts.recipe_training import AugmentationConfig
from bevkd_deploy.data.augment import augment_points, draw_bev_aug


def draws(config: AugmentationConfig, count: int = 200) -> np.ndarray:
    return np.stack([draw_bev_aug(config, np.random.default_rng([7, number])) for number in range(count)])


def test_nothing_asked_nothing_done() -> None:
    assert np.array_equal(draws(AugmentationConfig(), 5), np.tile(np.eye(4), (5, 1, 1)))


def test_flips_happen_half_of_the_time_and_on_their_own_axis() -> None:
    flipped_x = draws(AugmentationConfig(flip_x=True))
    assert {tuple(matrix.diagonal()) for matrix in flipped_x} == {(1, 1, 1, 1), (-1, 1, 1, 1)}
    assert 0.35 < (flipped_x[:, 0, 0] < 0).mean() < 0.65
    flipped_y = draws(AugmentationConfig(flip_y=True))
    assert {tuple(matrix.diagonal()) for matrix in flipped_y} == {(1, 1, 1, 1), (1, -1, 1, 1)}
    both = draws(AugmentationConfig(flip_x=True, flip_y=True))
    assert len({tuple(matrix.diagonal()) for matrix in both}) == 4


def test_rotation_turns_counter_clockwise_within_its_range() -> None:
    turned = draws(AugmentationConfig(rotation_rad=0.4))
    angles = np.arctan2(turned[:, 1, 0], turned[:, 0, 0])
    assert -0.4 <= angles.min() < -0.35 and 0.35 < angles.max() <= 0.4
    for matrix, angle in zip(turned, angles, strict=True):
        expected = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        assert matrix[:2, :2] == pytest.approx(np.array(expected))
    assert np.array_equal(turned[:, 2:], np.tile(np.eye(4)[2:], (200, 1, 1)))


def test_scale_is_the_same_along_all_axes() -> None:
    matrices = draws(AugmentationConfig(flip_x=True, flip_y=True, rotation_rad=1.0, scale=(0.9, 1.2)))
    scale = matrices[:, 2, 2]
    assert 0.9 <= scale.min() < 0.93 and 1.17 < scale.max() <= 1.2
    gram = matrices[:, :3, :3] @ matrices[:, :3, :3].transpose(0, 2, 1)
    assert gram == pytest.approx(scale[:, None, None] ** 2 * np.eye(3))
    assert not matrices[:, :3, 3].any()


def test_points_move_and_keep_intensity_and_time() -> None:
    points = np.array([[1, 2, 3, 200, 0.5], [-4, 0, 1, 7, 0]], dtype=np.float32)
    before = points.copy()
    quarter_turn = np.array([[0, -2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    moved = augment_points(points, quarter_turn)
    assert moved.dtype == np.float32
    assert moved.tolist() == [[-4, 2, 6, 200, 0.5], [0, -8, 2, 7, 0]]
    assert np.array_equal(points, before)
