"""mmdet3d's own CenterPoint and PointPillars as teachers, against mmdet3d itself on the real keyframe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bevkd_deploy.contracts.classes import CAMERA_NAMES  # noqa: E402
from bevkd_deploy.contracts.errors import CannotRunHere, UsageError  # noqa: E402
from bevkd_deploy.data.sensor_files import load_points  # noqa: E402
from bevkd_deploy.data.sensor_inputs import SensorPreprocessor  # noqa: E402
from bevkd_deploy.distill.taps import Taps  # noqa: E402
from bevkd_deploy.models.center_head import BOX_MAPS  # noqa: E402
from bevkd_deploy.teachers.frozen import FrozenTeacher  # noqa: E402
from bevkd_deploy.teachers.mmdet3d_config import Mmdet3dOptions  # noqa: E402
from bevkd_deploy.teachers.mmdet3d_model import Mmdet3dDetector, build_mmdet3d_teacher  # noqa: E402

KEYFRAME = Path(__file__).resolve().parents[2] / "../shared/data/nuscenes_keyframe"
CENTERPOINT = "centerpoint/centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d.py"
CENTERPOINT_ROTATED_NMS = "centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py"
POINTPILLARS = "pointpillars/pointpillars_hv_secfpn_sbn-all_8xb4-2x_nus-3d.py"
POINTPILLARS_FPN = "pointpillars/pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d.py"

#: CenterPoint on 24 x 16 BEV cells of 0.8 m: a real config that runs in a moment, and whose axes cannot be confused.
SMALL = """
_base_ = ['{base}']
edges = [-9.6, -6.4, -5.0, 9.6, 6.4, 3.0]
model = dict(
    data_preprocessor=dict(voxel_layer=dict(point_cloud_range=edges)),
    pts_voxel_encoder=dict(point_cloud_range=edges),
    pts_middle_encoder=dict(output_shape=(64, 96)),
    pts_bbox_head=dict(bbox_coder=dict(pc_range=edges[:2], max_num=100)))
"""

Inputs = dict[str, "torch.Tensor"]
WriteConfig = Callable[..., Path]


def config_of(mmdet3d: ModuleType, name: str) -> Path:
    return Path(mmdet3d.__file__).parent / ".mim" / "configs" / name


@pytest.fixture
def write_config(mmdet3d: ModuleType, tmp_path: Path) -> WriteConfig:
    """A small config with lines of the test's own after it."""

    def write(more: str = "", base: str = CENTERPOINT) -> Path:
        text = (
            SMALL.format(base=config_of(mmdet3d, base))
            if base == CENTERPOINT
            else f"_base_ = ['{config_of(mmdet3d, base)}']\n"
        )
        path = tmp_path / "config.py"
        path.write_text(text + more)
        return path

    return write


def build(config: Path, *, cameras: tuple[str, ...] = (), **options: Any) -> Mmdet3dDetector:
    torch.manual_seed(0)
    return build_mmdet3d_teacher(config, None, cameras, Mmdet3dOptions(**options))


def keyframe_points() -> Path:
    if not KEYFRAME.is_dir():
        pytest.skip("the real nuScenes keyframe is not on this machine")
    (path,) = KEYFRAME.glob("*.bin")
    return path


def inputs_of(teacher: Mmdet3dDetector, *clouds: np.ndarray[Any, Any]) -> Inputs:
    """As the data path makes them, LiDAR alone."""
    frames = [SensorPreprocessor(teacher.spec).inputs(None, cloud, None) for cloud in clouds]  # type: ignore[arg-type]
    longest = max(len(frame["points"]) for frame in frames)
    padded = [np.pad(frame["points"], ((0, longest - len(frame["points"])), (0, 0))) for frame in frames]
    counts = np.array([frame["point_count"] for frame in frames])
    return {"points": torch.from_numpy(np.stack(padded)), "point_count": torch.from_numpy(counts)}


def predicted_by_mmdet3d(teacher: Mmdet3dDetector, config: Path) -> Any:
    """mmdet3d's own test pipeline and predict, on the keyframe file itself."""
    from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes
    from mmengine.config import Config
    from mmengine.dataset import Compose, pseudo_collate
    from mmengine.registry import DefaultScope

    steps = Config.fromfile(config).test_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope("mmdet3d"):
        frame = Compose(steps)(
            {
                "lidar_points": {"lidar_path": str(keyframe_points()), "num_pts_feats": 5},
                "timestamp": 1.0,
                "lidar_sweeps": [],
                "box_type_3d": LiDARInstance3DBoxes,
                "box_mode_3d": Box3DMode.LIDAR,
            }
        )
        detector = teacher.__dict__["_detector"]
        with torch.no_grad():
            return detector.test_step(pseudo_collate([frame]))[0].pred_instances_3d


@pytest.mark.slow
@pytest.mark.parametrize("name", [CENTERPOINT, CENTERPOINT_ROTATED_NMS, POINTPILLARS])
def test_boxes_are_those_that_mmdet3d_predicts(mmdet3d: ModuleType, name: str) -> None:
    config = config_of(mmdet3d, name)
    teacher = build(config)
    found = teacher(**inputs_of(teacher, load_points(keyframe_points())))
    theirs = predicted_by_mmdet3d(teacher, config)
    count = len(theirs.scores_3d)
    order = torch.argsort(theirs.scores_3d, descending=True, stable=True)
    assert 50 < count <= teacher.spec.top_k
    boxes = theirs.bboxes_3d.tensor.clone()
    boxes[:, 2] += boxes[:, 5] / 2  # from where a box stands to its middle
    torch.testing.assert_close(found["boxes"][0, :count], boxes[order])
    torch.testing.assert_close(found["scores"][0, :count], theirs.scores_3d[order])
    torch.testing.assert_close(found["labels"][0, :count], theirs.labels_3d[order].long())
    assert not found["scores"][0, count:].any() and not found["boxes"][0, count:].any()


@pytest.mark.slow
def test_an_anchor_heatmap_is_the_best_anchor_of_each_cell(mmdet3d: ModuleType) -> None:
    teacher = build(config_of(mmdet3d, POINTPILLARS))
    inputs = inputs_of(teacher, load_points(keyframe_points()))
    with Taps(teacher, ["pts_bbox_head[0][0]", "pts_neck[0]"], detach=True) as taps:
        found = teacher(**inputs)
    tapped = taps.take()
    raw = tapped["pts_bbox_head[0][0]"].numpy()[0]  # [anchors * classes, Y, X]
    assert raw.shape == (140, 200, 200) and tapped["pts_neck[0]"].shape == (1, 384, 200, 200)
    for label, row, column in [(0, 0, 0), (3, 17, 180), (9, 199, 120)]:
        assert found["heatmap"][0, label, row, column] == raw[label::10, row, column].max()
    assert teacher.spec.bev_cell_m == pytest.approx(0.5) and teacher.spec.bev_shape_yx == (200, 200)
    assert teacher.inputs.points.columns == (0, 1, 2, 4)  # this config drops the intensity


def test_levels_of_an_anchor_head_meet_on_the_finest_grid(write_config: WriteConfig) -> None:
    narrow = """
edges = [-8.0, -4.0, -5.0, 8.0, 4.0, 3.0]
model = dict(
    data_preprocessor=dict(voxel_layer=dict(point_cloud_range=edges)),
    pts_voxel_encoder=dict(point_cloud_range=edges),
    pts_middle_encoder=dict(output_shape=[32, 64]),
    pts_bbox_head=dict(anchor_generator=dict(ranges=[[-8.0, -4.0, -1.8, 8.0, 4.0, -1.8]])))
"""
    teacher = build(write_config(narrow, POINTPILLARS_FPN))
    heads = [f"pts_bbox_head[0][{level}]" for level in range(3)]
    with Taps(teacher, heads, detach=True) as taps:
        found = teacher(**inputs_of(teacher, cloud(200)))
    levels = [taps_of.numpy()[0] for taps_of in taps.take().values()]
    assert [level.shape[1:] for level in levels] == [(16, 32), (8, 16), (4, 8)]
    for label, row, column in [(0, 0, 0), (4, 13, 30), (7, 9, 1)]:
        expected = max(level[label::10, row >> step, column >> step].max() for step, level in enumerate(levels))
        assert found["heatmap"][0, label, row, column] == expected


def cloud(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    low, high = [-9.0, -6.0, -2.0, 0.0, 0.0], [9.0, 6.0, 1.0, 255.0, 0.45]
    return rng.uniform(low, high, (count, 5)).astype(np.float32)


def test_the_maps_of_a_centre_head_are_its_own_and_decoding_leaves_them(write_config: WriteConfig) -> None:
    teacher = build(write_config())
    raw: list[Any] = []
    head = teacher.get_submodule("pts_bbox_head")
    head.register_forward_hook(lambda module, inputs, output: raw.append(copy.deepcopy(output)))
    with Taps(teacher, ["pts_bbox_head[1][0].heatmap", "pts_neck[0]"], detach=True) as taps:
        found = teacher(**inputs_of(teacher, cloud(400)))
    tasks = [{name: value[0].numpy() for name, value in task[0].items()} for task in raw[0]]
    assert teacher.spec.bev_shape_yx == (16, 24) and found["heatmap"].shape == (1, 10, 16, 24)
    # Bit for bit logits, although the head's own decoding turned its copy into probabilities.
    heat = np.concatenate([task["heatmap"] for task in tasks])
    assert np.array_equal(found["heatmap"][0].numpy(), heat) and heat.min() < 0
    assert torch.equal(taps.take()["pts_bbox_head[1][0].heatmap"], found["heatmap"][:, 1:3])
    winners = set()
    for row, column in np.ndindex(16, 24):
        best = int(np.argmax([task["heatmap"][:, row, column].max() for task in tasks]))
        winners.add(best)
        for name in BOX_MAPS:
            assert np.array_equal(found[name][0, :, row, column].numpy(), tasks[best][name][:, row, column])
    assert len(winners) > 1


def test_the_dense_maps_of_a_centre_head_decode_to_its_boxes(write_config: WriteConfig) -> None:
    """By hand, at the hottest cell of all: no other box can suppress its own."""
    teacher = build(write_config())
    found = {name: value[0].numpy() for name, value in teacher(**inputs_of(teacher, cloud(400))).items()}
    label, row, column = np.unravel_index(found["heatmap"].argmax(), found["heatmap"].shape)
    values = {name: found[name][:, row, column] for name in BOX_MAPS}
    x = -9.6 + (column + values["reg"][0]) * 0.8
    y = -6.4 + (row + values["reg"][1]) * 0.8
    yaw = np.arctan2(values["rot"][0], values["rot"][1])
    expected = [x, y, values["height"][0], *np.exp(values["dim"]), yaw, *values["vel"]]
    np.testing.assert_allclose(found["boxes"][0], expected, rtol=1e-5, atol=1e-5)
    assert found["labels"][0] == label
    assert found["scores"][0] == pytest.approx(1 / (1 + np.exp(-found["heatmap"].max())))


def test_sizes_that_a_head_regresses_in_metres_become_logarithms(write_config: WriteConfig) -> None:
    teacher = build(write_config("model['pts_bbox_head']['norm_bbox'] = False\n"))
    head = teacher.get_submodule("pts_bbox_head")
    for task in head.task_heads:
        torch.nn.init.constant_(task.dim[-1].bias, 3.0)
        torch.nn.init.zeros_(task.dim[-1].weight)
    found = teacher(**inputs_of(teacher, cloud(50)))
    torch.testing.assert_close(found["dim"], torch.full_like(found["dim"], 3.0).log())
    torch.testing.assert_close(found["boxes"][0, 0, 3:6], torch.full((3,), 3.0))


def test_frames_of_a_batch_are_read_apart_and_padding_is_no_point(write_config: WriteConfig) -> None:
    teacher = build(write_config())
    clouds = cloud(300, 1), cloud(120, 2)
    both = teacher(**inputs_of(teacher, *clouds))
    for row, one in enumerate(clouds):
        alone = teacher(**inputs_of(teacher, one))
        torch.testing.assert_close(both["heatmap"][row], alone["heatmap"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both["boxes"][row, :20], alone["boxes"][0, :20], rtol=1e-4, atol=1e-4)


def test_a_teacher_stays_as_it_is(write_config: WriteConfig) -> None:
    teacher = build(write_config())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()
    inputs = inputs_of(teacher, cloud(100))
    first, second = teacher(**inputs), teacher(**inputs)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(first[name], second[name]) for name in first) and first["heatmap"].grad_fn is None
    copied = copy.deepcopy(teacher)
    assert torch.equal(copied(**inputs)["heatmap"], first["heatmap"])


def test_it_serves_as_a_frozen_teacher_in_half_precision(write_config: WriteConfig) -> None:
    teacher = build(write_config())
    inputs = inputs_of(teacher, cloud(300))
    exact = FrozenTeacher(teacher, teacher.spec)(inputs)
    half = FrozenTeacher(teacher, teacher.spec, "bf16")
    maps = half(inputs)
    assert all(value.dtype == torch.float32 for value in maps.values())
    assert 0 < (maps["heatmap"] - exact["heatmap"]).abs().max() < 0.05
    boxes, scores, labels = half.boxes(maps)
    assert boxes.shape == (1, teacher.spec.top_k, 9) and labels.dtype == torch.int64
    assert (scores.diff(dim=1) <= 0).all()


def test_boxes_of_mmdet3d_are_ours_but_for_where_they_stand(mmdet3d: ModuleType) -> None:
    """Annotations of the keyframe, through mmdet3d's box class and back."""
    keyframe_points()
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    from bevkd_deploy.data.mmdet3d_infos import read_infos
    from bevkd_deploy.geometry.boxes import box_corners
    from bevkd_deploy.teachers.mmdet3d_heads import padded_boxes

    (sample,) = read_infos(KEYFRAME, "*.pkl", CAMERA_NAMES)
    ours = np.nan_to_num(sample.boxes).astype(np.float32)
    theirs = LiDARInstance3DBoxes(ours, box_dim=9, origin=(0.5, 0.5, 0.5))  # given by their middle
    scores = torch.linspace(1.0, 0.5, len(ours))
    found = padded_boxes([InstanceData(bboxes_3d=theirs, scores_3d=scores, labels_3d=scores.long())], 100)
    np.testing.assert_allclose(found["boxes"][0, : len(ours)].numpy(), ours, atol=1e-5)
    mine, his = box_corners(ours.astype(np.float64)), theirs.corners.numpy()
    for one, other in zip(mine, his, strict=True):  # as sets: the order of corners differs
        distance = np.linalg.norm(one[:, None] - other[None], axis=-1)
        assert distance.min(axis=1).max() < 1e-3 and distance.min(axis=0).max() < 1e-3


def test_points_outside_of_the_pipelines_range_are_dropped(write_config: WriteConfig) -> None:
    narrow = """
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=4),
    dict(type='PointsRangeFilter', point_cloud_range=[-2.0, -2.0, -5.0, 2.0, 2.0, 3.0]),
    dict(type='Pack3DDetInputs', keys=['points'])]))
"""
    teacher = build(write_config(narrow))
    assert teacher.inputs.points.columns == (0, 1, 2, 3) and not teacher.spec.drop_outside
    points = torch.tensor([[0.5, 0.5, 0.0, 9.0, 0.1], [2.0, 0.0, 0.0, 9.0, 0.1], [5.0, 0.0, 0.0, 9.0, 0.1]])
    batch = teacher.inputs.batch({"points": points[None], "point_count": torch.tensor([3])})
    assert batch["inputs"]["points"][0].tolist() == [[0.5, 0.5, 0.0, 9.0]]


# --- what cannot work says so -----------------------------------------------------------------------------------------


def refused(config: Path, *, cameras: tuple[str, ...] = (), **options: Any) -> str:
    with pytest.raises(UsageError) as raised:
        build(config, cameras=cameras, **options)
    return str(raised.value)


def test_a_config_that_is_missing_or_broken(mmdet3d: ModuleType, tmp_path: Path) -> None:
    assert "not found" in refused(tmp_path / "none.py")
    broken = tmp_path / "broken.py"
    for text, reason in [
        ("model = dict(", "SyntaxError"),
        ("_base_ = ['./gone.py']", "gone.py"),
        ("x = 1", "no model = dict"),
        ("model = dict(type='CenterPoint')", "does not name its classes"),
    ]:
        broken.write_text(text)
        message = refused(broken)
        assert reason in message and "broken.py" in message


def test_a_model_that_mmdet3d_cannot_build(write_config: WriteConfig) -> None:
    message = refused(write_config("model['pts_backbone'] = dict(type='SECONDS')\n"))
    assert "cannot build" in message and "SECONDS" in message


def test_imports_that_fail(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config("custom_imports = dict(imports=['projects_of_mine.detector'])\n")
    message = refused(config)
    assert "projects_of_mine" in message and "import_paths" in message and "source: bevfusion" in message
    assert "no folder" in refused(config, import_paths=(tmp_path / "nowhere",))


def test_classes_that_contradict_the_head(write_config: WriteConfig) -> None:
    swapped = """
names = ['truck', 'car', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle', 'pedestrian',
         'traffic_cone']
test_dataloader = dict(dataset=dict(metainfo=dict(classes=names)))
"""
    assert "contradicts itself" in refused(write_config(swapped))
    assert "tells 10 apart" in refused(
        write_config("test_dataloader = dict(dataset=dict(metainfo=dict(classes=['car'])))\n")
    )


def test_a_grid_that_contradicts_the_head(write_config: WriteConfig) -> None:
    message = refused(write_config("model['pts_bbox_head']['bbox_coder']['pc_range'] = [-51.2, -51.2]\n"))
    assert "origin" in message and "-51.2" in message and "-9.6" in message


def test_a_head_that_is_not_known_or_lacks_velocities(mmdet3d: ModuleType) -> None:
    message = refused(config_of(mmdet3d, "ssn/ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d.py"))
    assert "ShapeAwareHead" in message and "CenterHead, TransFusionHead, Anchor3DHead" in message
    assert "velocity" in refused(config_of(mmdet3d, "pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py"))


def test_a_pipeline_step_that_is_not_known(write_config: WriteConfig) -> None:
    strange = """
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=4),
    dict(type='PointSample', num_points=100),
    dict(type='Pack3DDetInputs', keys=['points'])]))
"""
    config = write_config(strange)
    assert "PointSample" in refused(config) and "skip_steps" in refused(config)
    assert build(config, skip_steps=("PointSample",)).inputs.points.sweeps == 0


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ("dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)", "ring"),
        (
            "dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=4, norm_intensity=True)",
            "intensity",
        ),
        ("dict(type='PointsRangeFilter', point_cloud_range=[0, 0, 0, 1, 1, 1])", "no LoadPointsFromFile"),
        ("dict(type='GlobalRotScaleTrans', rot_range=[0, 0.1], scale_ratio_range=[1, 1])", "GlobalRotScaleTrans"),
    ],
)
def test_points_that_our_inputs_cannot_stand_in_for(write_config: WriteConfig, steps: str, reason: str) -> None:
    assert reason in refused(write_config(f"test_dataloader = dict(dataset=dict(pipeline=[{steps}]))\n"))


def test_test_time_augmentation(write_config: WriteConfig) -> None:
    config = write_config("""
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=4),
    dict(type='MultiScaleFlipAug3D', img_scale=(1333, 800), pts_scale_ratio=1, flip=True, transforms=[])]))
""")
    assert "augments while testing" in refused(config)


def test_a_model_with_cameras_needs_them(write_config: WriteConfig) -> None:
    config = write_config("""
model['img_backbone'] = dict(type='mmdet.ResNet', depth=18, out_indices=(3,))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadMultiViewImageFromFiles'),
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=4),
    dict(type='ImageAug3D', final_dim=[64, 96], resize_lim=[0.4, 0.4], bot_pct_lim=[0.0, 0.0], is_train=False),
    dict(type='Pack3DDetInputs', keys=['points', 'img'])]))
""")
    assert "data.cameras is empty" in refused(config)
    teacher = build(config, cameras=("CAM_FRONT",))
    assert teacher.spec.cameras == ("CAM_FRONT",) and teacher.spec.image_scale == pytest.approx(0.4)
    assert teacher.inputs.images is not None and teacher.inputs.images.channels == "bgr"
    assert build(write_config(), cameras=("CAM_FRONT",)).spec.cameras == ()  # a model without takes none


def test_sparse_convolutions_of_mmcv_do_not_run_on_a_cpu(mmdet3d: ModuleType) -> None:
    config = config_of(mmdet3d, "centerpoint/centerpoint_voxel01_second_secfpn_8xb4-cyclic-20e_nus-3d.py")
    teacher = build(config)
    if not any(type(module).__module__.startswith("mmcv.ops.sparse_") for module in teacher.modules()):
        pytest.skip("spconv is installed")
    with pytest.raises(CannotRunHere, match="CUDA alone"):
        teacher(**inputs_of(teacher, cloud(50)))


def test_a_stride_that_does_not_fit(write_config: WriteConfig) -> None:
    teacher = build(write_config(), bev_stride=8)
    with pytest.raises(UsageError, match="bev_stride"):
        teacher(**inputs_of(teacher, cloud(50)))
