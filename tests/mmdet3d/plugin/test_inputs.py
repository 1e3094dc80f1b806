"""What BevkdInputs makes of mmdet3d's pipelines against our own data path, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.source import open_split
from bevkd_deploy.geometry.boxes import augment_boxes
from bevkd_deploy.geometry.camera_lut import fit_image
from bevkd_deploy.geometry.frames import transform_points
from bevkd_deploy.runtime.preprocess import Preprocessor

CAMERAS = 6


@pytest.fixture(scope="module")
def frames(recipe: Path, converted: Path) -> FrameDataset:
    """Our own data path, from the same info file."""
    loaded = load_recipe(recipe).recipe
    specs = {"student": loaded.student_spec(), "teacher": loaded.teacher_spec()}
    return FrameDataset(open_split(loaded.data, converted, "train"), specs, target_of="student", min_radius_cells=1)


@pytest.fixture
def results(recipe: Path, converted: Path) -> Callable[..., dict[str, Any]]:
    """Results of mmdet3d's loading transforms, and of further ones, for a training frame."""

    def load(number: int, *transforms: dict[str, Any], classes: tuple[str, ...] = CLASS_NAMES) -> dict[str, Any]:
        from mmdet3d.registry import DATASETS, TRANSFORMS

        dataset = DATASETS.build(
            {
                "type": "NuScenesDataset",
                "data_root": str(converted),
                "ann_file": "nuscenes_infos_train.pkl",
                "data_prefix": {"pts": "samples/LIDAR_TOP", "sweeps": "sweeps/LIDAR_TOP", **_camera_folders()},
                "pipeline": [],
                "metainfo": {"classes": classes},
                "modality": {"use_camera": True, "use_lidar": True},
                "use_valid_flag": True,
            }
        )
        found = dataset.get_data_info(number)
        found |= {"box_type_3d": dataset.box_type_3d, "box_mode_3d": dataset.box_mode_3d}
        for transform in (*LOADING, *transforms):
            found = TRANSFORMS.build(transform).transform(found)
        return found

    return load


LOADING = (
    {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
    {"type": "LoadPointsFromMultiSweeps", "sweeps_num": 0, "load_dim": 5, "use_dim": [0, 1, 2, 3, 4]},
    {"type": "LoadMultiViewImageFromFiles", "num_views": CAMERAS},
    {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
)


def _camera_folders() -> dict[str, str]:
    from bevkd_deploy.contracts.classes import CAMERA_NAMES

    return {camera: f"samples/{camera}" for camera in CAMERA_NAMES}


def transform_of(plugin: ModuleType, recipe: Path, **settings: Any) -> Any:
    return plugin.BevkdInputs(**{"recipe": str(recipe), "classes": CLASS_NAMES, "image_channels": "bgr", **settings})


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("number", [0, 2])
def test_the_inputs_are_those_of_our_own_data_path(
    plugin: ModuleType, recipe: Path, frames: FrameDataset, results: Callable[..., Any], number: int
) -> None:
    packed = transform_of(plugin, recipe).transform(results(number))
    ours = frames[number]
    assert_same(packed["inputs"]["student"], ours["inputs"]["student"])
    targets = packed["inputs"]["targets"]
    for name in ("cell", "label"):
        assert torch.equal(targets[name], ours["targets"][name])
    objects = ours["targets"]["label"] >= 0
    assert objects.sum() > 5
    # mmdet3d's boxes are float32, and where the velocity is not known it says 0.
    known = ours["targets"]["mask"]
    torch.testing.assert_close(targets["values"] * known, ours["targets"]["values"] * known, atol=2e-3, rtol=0)
    torch.testing.assert_close(targets["heatmap"], ours["targets"]["heatmap"], atol=1e-6, rtol=0)
    assert len(packed["data_samples"].gt_instances_3d.labels_3d) >= int(objects.sum())


def test_a_teacher_of_the_same_inputs_gets_none_of_its_own(
    plugin: ModuleType, recipe: Path, frames: FrameDataset, results: Callable[..., Any]
) -> None:
    packed = transform_of(plugin, recipe, teacher=True).transform(results(0))
    assert packed["inputs"].keys() == {"student", "targets"}
    wider = transform_of(plugin, recipe, teacher=True, overrides=["teacher.model.lidar.max_pillars=1200"])
    inputs = wider.transform(results(0))["inputs"]
    assert inputs["teacher"]["pillars"].shape[0] == 1200 and inputs["student"]["pillars"].shape[0] == 1500
    assert torch.equal(inputs["teacher"]["images"], frames[0]["inputs"]["teacher"]["images"])


def test_labels_go_by_name_not_by_number(
    plugin: ModuleType, recipe: Path, frames: FrameDataset, results: Callable[..., Any]
) -> None:
    backwards = CLASS_NAMES[::-1]
    packed = transform_of(plugin, recipe, classes=backwards).transform(results(0, classes=backwards))
    assert torch.equal(packed["inputs"]["targets"]["label"], frames[0]["targets"]["label"])
    some = ("pedestrian", "car")
    packed = transform_of(plugin, recipe, classes=some).transform(results(0, classes=some))
    label = packed["inputs"]["targets"]["label"]
    wanted = {CLASS_NAMES.index(name) for name in some}
    assert set(label[label >= 0].tolist()) == set(frames[0]["targets"]["label"].tolist()) & wanted


def test_predictions_have_the_datasets_labels(plugin: ModuleType, recipe: Path, results: Callable[..., Any]) -> None:
    """Boxes on their bottom centre, labels by name, nothing of classes that the data set does not have."""
    from mmengine.dataset import pseudo_collate

    model = plugin.BevkdStudent(recipe=str(recipe)).eval()
    found: dict[tuple[str, ...], Any] = {}
    common = "car"
    for some in (CLASS_NAMES, CLASS_NAMES[::-1], None):
        classes = some or ("car" if common != "car" else "truck", common)  # the untrained network favours a few
        packed = transform_of(plugin, recipe, classes=classes).transform(results(0, classes=classes))
        batch = model.data_preprocessor(pseudo_collate([packed, packed]))
        with torch.no_grad():
            first, second = model(**batch, mode="predict")
            maps = model(**batch, mode="tensor")
        assert torch.equal(first.pred_instances_3d.scores_3d, second.pred_instances_3d.scores_3d)
        found[classes] = first.pred_instances_3d
        common = classes[int(first.pred_instances_3d.labels_3d.mode().values)]
    boxes, scores, labels = (part[0] for part in model.detector.decode(maps))
    for classes, instances in found.items():
        known = torch.tensor([CLASS_NAMES[label] in classes for label in labels])
        names = [CLASS_NAMES[label] for label in labels[known]]
        assert len(names) > 2 and [classes[label] for label in instances.labels_3d] == names
        assert torch.equal(instances.scores_3d, scores[known])
        torch.testing.assert_close(instances.bboxes_3d.gravity_center, boxes[known][:, :3])
        torch.testing.assert_close(instances.bboxes_3d.tensor[:, 2], boxes[known][:, 2] - boxes[known][:, 5] / 2)
        torch.testing.assert_close(instances.bboxes_3d.tensor[:, 3:], boxes[known][:, 3:])


def test_float_images_and_rgb_are_the_same_images(
    plugin: ModuleType, recipe: Path, results: Callable[..., Any]
) -> None:
    bgr = results(0)
    expected = transform_of(plugin, recipe).transform(dict(bgr))["inputs"]["student"]
    floats = {**bgr, "img": [image[..., ::-1].astype(np.float32) for image in bgr["img"]]}
    found = transform_of(plugin, recipe, image_channels="rgb").transform(floats)["inputs"]["student"]
    assert_same(found, expected)


GLOBAL = {
    "type": "GlobalRotScaleTrans",
    "rot_range": [0.3, 0.3],
    "scale_ratio_range": [1.1, 1.1],
    "translation_std": [0.5, 0.5, 0.2],
}


def test_the_matrix_is_what_mmdet3d_did_to_points_and_boxes(plugin: ModuleType, results: Callable[..., Any]) -> None:
    from bevkd_deploy.mmdet3d.boxes import from_lidar_boxes
    from bevkd_deploy.mmdet3d.results import bev_aug_of

    before = results(0)
    points, boxes = before["points"].tensor[:, :3].numpy().copy(), from_lidar_boxes(before["gt_bboxes_3d"])
    assert bev_aug_of(before) is None
    after = results(0, GLOBAL)
    matrix = bev_aug_of(after)
    assert matrix is not None
    moved = after["points"].tensor[:, :3].numpy()
    np.testing.assert_allclose(moved, transform_points(matrix, points.astype(np.float64)), atol=1e-4)
    found, expected = from_lidar_boxes(after["gt_bboxes_3d"]), augment_boxes(boxes, matrix)
    np.testing.assert_allclose(found[:, :6], expected[:, :6], atol=1e-4)
    assert np.abs(np.angle(np.exp(1j * (found[:, 6] - expected[:, 6])))).max() < 1e-5


def test_flips_and_the_matrix_of_projects_bevfusion(results: Callable[..., Any]) -> None:
    from bevkd_deploy.mmdet3d.results import bev_aug_of

    for step, diagonal in (("HF", [1, -1, 1, 1]), ("VF", [-1, 1, 1, 1])):
        found = results(0)
        points = found["points"].tensor.clone()
        found["points"].flip("horizontal" if step == "HF" else "vertical")
        matrix = bev_aug_of({"transformation_3d_flow": [step]})
        assert matrix is not None and matrix.tolist() == np.diag(diagonal).tolist()
        expected = transform_points(matrix, points[:, :3].double().numpy())
        np.testing.assert_allclose(found["points"].tensor[:, :3].numpy(), expected, atol=1e-6)
    given = np.diag([1.1, -1.1, 1.1, 1.0])
    matrix = bev_aug_of({"lidar_aug_matrix": given, "transformation_3d_flow": ["R", "T", "S"]})
    assert matrix is not None and matrix.tolist() == given.tolist()


def test_camera_tables_follow_what_mmdet3d_augmented(
    plugin: ModuleType, recipe: Path, frames: FrameDataset, results: Callable[..., Any]
) -> None:
    from bevkd_deploy.mmdet3d.results import bev_aug_of

    augmented = results(0, GLOBAL)
    matrix = bev_aug_of(augmented)
    found = transform_of(plugin, recipe).transform(augmented)["inputs"]["student"]
    preprocessor = Preprocessor(frames.specs["student"])  # type: ignore[arg-type]
    lut_pixel, lut_depth = preprocessor.tables(frames.samples[0].calibration, matrix)
    assert np.array_equal(found["lut_pixel"].numpy(), lut_pixel)
    assert np.array_equal(found["lut_depth"].numpy(), lut_depth)
    assert not torch.equal(found["lut_pixel"], frames[0]["inputs"]["student"]["lut_pixel"])


def shift_last(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As ImageAug3D keeps an affine: the shift in the last column."""
    moved = np.eye(4)
    moved[:2, :2], moved[:2, 3] = matrix[:2, :2], matrix[:2, 2]
    return moved


def test_images_that_a_transform_has_brought_to_size(
    plugin: ModuleType, recipe: Path, frames: FrameDataset, results: Callable[..., Any]
) -> None:
    """As ImageAug3D leaves them: first as our own resize makes them, then mirrored."""
    spec = frames.specs["student"]
    width = spec.image_width_px
    expected = frames[0]["inputs"]["student"]
    loaded = results(0)
    raw2network = fit_image(loaded["ori_shape"], spec).matrix(loaded["ori_shape"])  # type: ignore[arg-type]
    ready = {**loaded, "img": [image[..., ::-1] for image in expected["images"].numpy()]}
    ready["img_aug_matrix"] = [shift_last(raw2network)] * CAMERAS
    assert_same(transform_of(plugin, recipe).transform(dict(ready))["inputs"]["student"], expected)

    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 2] = width  # pixel i covers [i, i + 1)
    mirrored = {**ready, "img": [image[:, ::-1] for image in ready["img"]]}
    mirrored["img_aug_matrix"] = [shift_last(mirror @ raw2network)] * CAMERAS
    found = transform_of(plugin, recipe).transform(mirrored)["inputs"]["student"]
    assert torch.equal(found["images"], expected["images"].flip(2))
    columns = width // spec.feature_stride  # type: ignore[union-attr]
    there = expected["lut_pixel"] < spec.pixel_dump_index  # type: ignore[union-attr]
    assert there.sum() > 1000 and torch.equal(found["lut_pixel"] < spec.pixel_dump_index, there)  # type: ignore[union-attr]
    row, column = found["lut_pixel"][there] // columns, found["lut_pixel"][there] % columns
    assert torch.equal(row, expected["lut_pixel"][there] // columns)
    assert torch.equal(columns - 1 - column, expected["lut_pixel"][there] % columns)


def test_the_recipes_augmentation_moves_everything_at_once(
    plugin: ModuleType, recipe: Path, frames: FrameDataset, results: Callable[..., Any]
) -> None:
    """The boxes that come back give the draw, which the points and the targets must have had too."""
    from bevkd_deploy.mmdet3d.boxes import from_lidar_boxes

    transform = transform_of(plugin, recipe, augment=True)
    np.random.seed(3)
    first = transform.transform(results(0))
    np.random.seed(3)
    assert_same(transform.transform(results(0))["inputs"]["student"], first["inputs"]["student"])
    assert not torch.equal(transform.transform(results(0))["inputs"]["student"]["lut_pixel"],
                           first["inputs"]["student"]["lut_pixel"])  # fmt: skip
    before = from_lidar_boxes(results(0)["gt_bboxes_3d"])
    after = from_lidar_boxes(first["data_samples"].gt_instances_3d.bboxes_3d)
    matrix = np.linalg.lstsq(np.c_[before[:, :3], np.ones(len(before))], after[:, :3], rcond=None)[0].T
    full = np.vstack([matrix, [0, 0, 0, 1]])
    pillars = Preprocessor(frames.specs["student"]).pillars  # type: ignore[arg-type]
    raw = results(0)["points"].tensor.numpy()
    moved = raw.copy()
    moved[:, :3] = transform_points(full, raw[:, :3].astype(np.float64))
    expected = pillars(moved)
    same = expected.pillar_index == first["inputs"]["student"]["pillar_index"].numpy()
    assert same.mean() > 0.97  # the draw is recovered to five digits: a point on a cell's edge may fall elsewhere
    cells = first["inputs"]["targets"]["cell"][first["inputs"]["targets"]["label"] >= 0]
    assert set(cells.tolist()) != set(frames[0]["targets"]["cell"].tolist())


BREAKS: list[tuple[str, Callable[[dict[str, Any]], None], type[Exception], str]] = [
    ("no points", lambda r: r.pop("points"), UsageError, "no 'points'.*LoadPointsFromFile"),
    ("no images", lambda r: r.pop("img"), UsageError, "no 'img'.*use_camera=True"),
    ("images flipped", lambda r: r.update(flip=True), UsageError, "RandomFlip3D has flipped the images"),
    ("resized", lambda r: r.update(img=[i[::2] for i in r["img"]]), UsageError, "left no img_aug_matrix"),
    ("normalised", lambda r: r.update(img=[i / 128.0 - 1 for i in r["img"]]), DataError, "must hold 0..255, got -1"),
    ("divided", lambda r: r.update(img=[i / 255.0 for i in r["img"]]), DataError, "must hold 0..255, got 0..1"),
    ("ring", lambda r: r["points"].tensor[:, 4].fill_(31), UsageError, "reaches 31.*ring number"),
    ("4 columns", lambda r: r.update(points=r["points"][:, [0, 1, 2, 3]]), UsageError, "5 columns.*got .*4"),
    ("twice", lambda r: r.update(transformation_3d_flow=["HF", "HF"]), UsageError, "augmented the frame twice"),
    ("unknown", lambda r: r.update(transformation_3d_flow=["Q"]), UsageError, "step 'Q'.*not known"),
    (
        "mixed",
        lambda r: r.update(transformation_3d_flow=["HF"], lidar_aug_matrix=np.eye(4)),
        UsageError,
        "mixes mmdet3d's own augmentation",
    ),
    (
        "size",
        lambda r: r.update(img_aug_matrix=[np.eye(4)] * CAMERAS),
        UsageError,
        r"makes images of .*\(198, 352\).*takes \(64, 128\): set final_dim",
    ),
    ("camera", lambda r: (r["images"].pop("CAM_BACK"), r["img"].pop(3)), UsageError, "takes cameras .*CAM_BACK"),
    ("labels", lambda r: r["gt_labels_3d"].__setitem__(0, 10), UsageError, "gives label 10.*told 10 classes"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), [b[1:] for b in BREAKS], ids=[b[0] for b in BREAKS])
def test_a_pipeline_that_cannot_be_followed_is_refused(
    plugin: ModuleType,
    recipe: Path,
    results: Callable[..., Any],
    spoil: Callable[[dict[str, Any]], None],
    error: type[Exception],
    message: str,
) -> None:
    found = results(0)
    spoil(found)
    with pytest.raises(error, match=message):
        transform_of(plugin, recipe).transform(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("car", "pedestrain")}, "no class 'pedestrain'. Did you mean 'pedestrian'"),
        ({"classes": ("car", "car")}, "different names"),
        ({"image_channels": "gbr"}, "'bgr' or 'rgb', got 'gbr'"),
        ({"augment": True, "overrides": ["student.train.augmentation.paste={}"]}, "pastes no objects.*ObjectSample"),
        ({"overrides": ["student.train.stages=[{epochs: 1}]"]}, "trains in stages"),
    ],
)
def test_settings_that_cannot_work(plugin: ModuleType, recipe: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        transform_of(plugin, recipe, **settings)


def test_images_are_not_augmented_twice(plugin: ModuleType, recipe: Path, results: Callable[..., Any]) -> None:
    twice = transform_of(
        plugin, recipe, augment=True, overrides=["student.train.augmentation.image={scale: [1.0, 1.2]}"]
    )
    found = {**results(0), "img_aug_matrix": [np.eye(4)] * CAMERAS}
    with pytest.raises(UsageError, match="augmented twice"):
        twice.transform(found)
