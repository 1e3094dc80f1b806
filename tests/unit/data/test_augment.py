"""BEV augmentation as one similarity of the ground plane, image augmentation against BEVFusion's composition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_training import AugmentationConfig, ImageAugmentationConfig
from bevkd_deploy.data.augment import FrameAug, augment_points, draw_bev_aug, draw_frame_aug, draw_view_aug
from bevkd_deploy.geometry.boxes import augment_boxes, points_in_boxes
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.camera_lut import fit_image, view2network
from bevkd_deploy.geometry.frames import transform_points, yaw_pose


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


def test_translation_is_normal_with_its_own_spread_along_each_axis() -> None:
    matrices = draws(AugmentationConfig(rotation_rad=1.0, scale=(0.5, 0.6), translation_m=(0.5, 2.0, 0.1)), 2000)
    shift_m = matrices[:, :3, 3]
    assert shift_m.std(axis=0) == pytest.approx([0.5, 2.0, 0.1], rel=0.06)  # metres of the augmented frame
    assert np.abs(shift_m.mean(axis=0)) == pytest.approx(0, abs=0.12)
    assert abs(np.corrcoef(shift_m.T)[0, 1]) < 0.06


def test_translation_does_not_change_the_other_draws() -> None:
    still = AugmentationConfig(flip_x=True, flip_y=True, rotation_rad=0.7, scale=(0.9, 1.1))
    moving = still.model_copy(update={"translation_m": (1.0, 1.0, 1.0)})
    assert np.array_equal(draws(still, 20)[:, :3, :3], draws(moving, 20)[:, :3, :3])


BEV_CONFIG = AugmentationConfig(
    flip_x=True, flip_y=True, rotation_rad=3.0, scale=(0.5, 2.0), translation_m=(5.0, 5.0, 1.0)
)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_points_keep_their_boxes(seed: int) -> None:
    """Moved together, points inside stay inside, points outside stay outside, velocity is a moved displacement."""
    rng = np.random.default_rng(seed)
    boxes = np.column_stack([rng.uniform(-40, 40, (4, 3)), rng.uniform(0.5, 9, (4, 3)), rng.uniform(-3, 3, (4, 3))])
    fractions = rng.uniform(-0.6, 0.6, (4, 50, 3))
    fractions[np.abs(np.abs(fractions) - 0.5) < 1e-3] = 0  # on no face: float32 rounds
    points = np.concatenate(
        [
            transform_points(yaw_pose(box[6], box[:3]), fraction * box[3:6])
            for box, fraction in zip(boxes, fractions, strict=True)
        ]
    )
    cloud = np.column_stack([points, np.zeros((200, 2))]).astype(np.float32)
    bev_aug = draw_bev_aug(BEV_CONFIG, rng)
    moved = augment_points(cloud, bev_aug)
    moved_boxes = augment_boxes(boxes, bev_aug)
    assert np.array_equal(points_in_boxes(moved, moved_boxes), points_in_boxes(points, boxes))
    later = boxes.copy()
    later[:, :2] += boxes[:, 7:9]
    assert augment_boxes(later, bev_aug)[:, :2] == pytest.approx(moved_boxes[:, :2] + moved_boxes[:, 7:9])


@pytest.mark.parametrize("axis", [0, 1])
def test_mirroring_twice_is_nothing(axis: int) -> None:
    mirror = np.eye(4)
    mirror[axis, axis] = -1
    boxes = np.array([[3.0, -4.0, 1.0, 4.0, 2.0, 1.5, 2.2, 5.0, -1.0]])
    once = augment_boxes(boxes, mirror)
    assert once[0, axis] == -boxes[0, axis]
    assert augment_boxes(once, mirror) == pytest.approx(boxes)
    view = draw_view_aug(ImageAugmentationConfig(flip=True), 0.5, 0.4, Mirrored())
    assert np.array_equal(view @ [0.25, -0.1, 1, 1], [0.75, -0.1, 1, 1])
    assert np.array_equal(view @ view, np.eye(4))


class Mirrored(np.random.Generator):
    """Always mirrors."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
        return 0.0


VIEWS = ImageAugmentationConfig(scale=(0.8, 1.3), bottom_crop=(0.0, 0.15), flip=True, rotation_rad=0.3)


def image_aug_3d(spec: GraphSpec, raw_hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Raw to augmented pixels as mit-han-lab/bevfusion's ImageAug3D composes them, without its rounding to pixels."""
    height, width = spec.image_height_px, spec.image_width_px
    scale, left, bottom = rng.uniform(*VIEWS.scale), rng.random(), rng.uniform(*VIEWS.bottom_crop)
    flip, angle = rng.random() < 0.5, rng.uniform(-VIEWS.rotation_rad, VIEWS.rotation_rad)
    resize = scale * width / raw_hw[1]
    rotation = np.eye(2) * resize
    translation = -np.array([left * (resize * raw_hw[1] - width), (1 - bottom) * resize * raw_hw[0] - height])
    if flip:
        mirror = np.diag([-1.0, 1.0])
        rotation, translation = mirror @ rotation, mirror @ translation + [width, 0]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([width, height]) / 2
    matrix = np.eye(3)
    matrix[:2, :2] = turn @ rotation
    matrix[:2, 2] = turn @ translation + middle - turn @ middle
    return matrix


@pytest.mark.parametrize("raw_hw", [(100, 128), (90, 160)])
@pytest.mark.parametrize("number", range(8))
def test_a_view_is_bevfusions(tiny_spec: GraphSpec, raw_hw: tuple[int, int], number: int) -> None:
    aspect = tiny_spec.image_height_px / tiny_spec.image_width_px
    view = draw_view_aug(VIEWS, raw_hw[0] / raw_hw[1], aspect, np.random.default_rng(number))
    img_aug = FrameAug(None, {"CAM_FRONT": view}).img_aug(tiny_spec)
    assert img_aug is not None
    got = (img_aug["CAM_FRONT"] @ fit_image(raw_hw, tiny_spec).matrix(raw_hw))[:3, :3]
    assert got == pytest.approx(image_aug_3d(tiny_spec, raw_hw, np.random.default_rng(number)))


def test_a_view_of_nothing_is_the_deployed_one() -> None:
    for number in range(5):
        view = draw_view_aug(ImageAugmentationConfig(), 0.6, 0.5, np.random.default_rng(number))
        assert view == pytest.approx(np.eye(4), abs=1e-12)


def test_networks_of_other_sizes_see_the_same_view(tiny_spec: GraphSpec) -> None:
    larger = tiny_spec.model_copy(update={"image_height_px": 96, "image_width_px": 160})
    view = draw_view_aug(VIEWS, 0.75, 0.5, np.random.default_rng(1))
    augmented = FrameAug(None, {"CAM_FRONT": view})
    place = np.array([0.3, -0.2, 1.0, 1.0])  # view units: the same spot of the picture for both
    seen = []
    for spec in (tiny_spec, larger):
        img_aug = augmented.img_aug(spec)
        assert img_aug is not None
        pixel = img_aug["CAM_FRONT"] @ view2network(spec) @ place
        seen.append([pixel[0] / spec.image_width_px, (pixel[1] - spec.image_height_px) / spec.image_width_px])
    assert seen[0] == pytest.approx(seen[1])
    assert seen[0] == pytest.approx((view @ place)[:2])


def frame_aug(config: AugmentationConfig, cameras: tuple[str, ...], seed: list[int]) -> FrameAug:
    calibration = Calibration(
        cameras, np.tile(np.eye(3), (len(cameras), 1, 1)), np.tile(np.eye(4), (len(cameras), 1, 1)),
        ((100, 128),) * len(cameras),
    )  # fmt: skip
    return draw_frame_aug(config, calibration, ("A", "B", "C"), 0.5, seed)


def test_streams_are_apart() -> None:
    """A missing camera, or views switched on, change no other draw."""
    config = BEV_CONFIG.model_copy(update={"image": VIEWS})
    whole, without = frame_aug(config, ("A", "B", "C"), [0, 5]), frame_aug(config, ("A", "C"), [0, 5])
    assert whole.view_aug is not None and without.view_aug is not None
    assert list(without.view_aug) == ["A", "C"]
    for camera in ("A", "C"):
        assert np.array_equal(whole.view_aug[camera], without.view_aug[camera])
    assert not np.array_equal(whole.view_aug["A"], whole.view_aug["B"])
    assert np.array_equal(whole.bev_aug, frame_aug(BEV_CONFIG, ("A",), [0, 5]).bev_aug)
    other = frame_aug(config, ("A", "B", "C"), [0, 6])
    assert other.view_aug is not None
    assert not np.array_equal(whole.view_aug["A"], other.view_aug["A"])


@pytest.mark.parametrize("image", [None, ImageAugmentationConfig()])
def test_what_is_off_is_absent(image: ImageAugmentationConfig | None) -> None:
    nothing = frame_aug(AugmentationConfig(image=image), ("A", "B", "C"), [0, 5])
    assert nothing.bev_aug is None and nothing.view_aug is None
