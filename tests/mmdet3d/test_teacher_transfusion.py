"""BEVFusion's head family through the adapter: a small detector with its manners, and BEVFusion itself where it is.

mmdet3d's package has no BEVFusion; its repository has, under projects/, with operators to compile. To run the last
test, check out open-mmlab/mmdetection3d and name its folder in MMDET3D_SOURCE; it needs spconv, and compiles nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bevkd_deploy.contracts.classes import CAMERA_NAMES, CLASS_NAMES  # noqa: E402
from bevkd_deploy.distill.taps import Taps  # noqa: E402
from bevkd_deploy.teachers.mmdet3d_config import Mmdet3dOptions  # noqa: E402
from bevkd_deploy.teachers.mmdet3d_model import Mmdet3dDetector, build_mmdet3d_teacher  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "unit" / "models" / "bevfusion"
KEYFRAME = REPOSITORY / "../shared/data/nuscenes_keyframe"
BEVFUSION = "projects/BEVFusion/configs/bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py"

#: A package outside of mmdet3d, as projects/BEVFusion is: the head is called with metadata, draws [x, y] maps, decodes
#: in place, and turns its own logits into probabilities; the detector reads the matrices from the metadata.
DETECTOR = """
import numpy as np
import torch
from mmdet3d.datasets.transforms import LoadMultiViewImageFromFiles
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS, TRANSFORMS
from mmengine.structures import InstanceData


@TRANSFORMS.register_module()
class BEVLoadMultiViewImageFromFiles(LoadMultiViewImageFromFiles):
    # As BEVFusion's own: RGB, which no configuration says.

    def transform(self, results):
        results = super().transform(results)
        results["img"] = [image[..., ::-1] for image in results["img"]]
        return results


class Coder:
    code_size, out_size_factor, voxel_size, pc_range = 10, 2, [0.5, 0.5], [-4.0, -2.0]
    post_center_range = [-9.0, -9.0, -9.0, 9.0, 9.0, 9.0]


class TransFusionHead(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.num_classes, self.num_proposals, self.bbox_coder = 10, 4, Coder()

    def forward(self, feats, metas):
        self.metas = metas
        queries = {"center": torch.tensor([[[1.0, 2.0, 6.0], [1.0, 3.0, 2.0]]]), "height": torch.zeros(1, 1, 3) + 0.5,
                   "dim": torch.zeros(1, 3, 3), "rot": torch.tensor([[[0.0, 1.0, 0.5], [1.0, 0.0, -0.5]]]),
                   "vel": torch.ones(1, 2, 3)}
        return ([{"dense_heatmap": feats.clone(), **queries}],)

    def predict_by_feat(self, outputs, metas):
        found = outputs[0][0]
        found["dense_heatmap"].sigmoid_()
        center, dim = found["center"], found["dim"].exp_()
        center[:, 0] = center[:, 0] * 1.0 - 4.0
        center[:, 1] = center[:, 1] * 1.0 - 2.0
        bottom = found["height"] - dim[:, 2:] / 2
        yaw = torch.atan2(found["rot"][:, :1], found["rot"][:, 1:])
        boxes = torch.cat([center, bottom, dim, yaw, found["vel"]], dim=1)[0].T
        scores, labels = torch.tensor([0.2, 0.9, 0.4]), torch.tensor([3, 9, 0])
        return [InstanceData(bboxes_3d=metas[0]["box_type_3d"](boxes, box_dim=9), scores_3d=scores,
                             labels_3d=labels.int())]


@MODELS.register_module()
class QueryHead(TransFusionHead):
    pass


class Voxels(torch.nn.Module):
    point_cloud_range, voxel_size = [-4.0, -2.0, -3.0, 4.0, 2.0, 3.0], [0.5, 0.5, 6.0]


@MODELS.register_module(force=True)
class SmallBEVFusion(Base3DDetector):
    def __init__(self, data_preprocessor, img_backbone, bbox_head):
        super().__init__(data_preprocessor)
        assert img_backbone["init_cfg"] is None  # else it would be downloaded
        self.pts_voxel_layer, self.img_backbone = Voxels(), torch.nn.Identity()
        self.bbox_head = MODELS.build(bbox_head)

    def loss(self, *args): raise AssertionError("a teacher has no loss")
    _forward = predict = loss

    def extract_feat(self, inputs, metas):
        self.seen = inputs
        assert np.asarray(metas[0]["lidar2img"]).shape == (2, 4, 4)
        return torch.linspace(-3, 3, 320).reshape(1, 10, 8, 4)
"""

CONFIG = f"""
custom_imports = dict(imports=['small_project.detector'], allow_failed_imports=False)
model = dict(
    type='SmallBEVFusion',
    data_preprocessor=dict(type='Det3DDataPreprocessor', mean=[100.0, 50.0, 0.0], std=[1.0, 1.0, 1.0]),
    img_backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='https://nowhere.invalid/x.pth')),
    bbox_head=dict(type='QueryHead'))
metainfo = dict(classes={list(CLASS_NAMES)})
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadMultiViewImageFromFiles', to_float32=True),
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=4),
    dict(type='ImageAug3D', final_dim=[4, 6], resize_lim=[0.4, 0.56], bot_pct_lim=[0.0, 0.0], is_train=False),
    dict(type='Pack3DDetInputs', keys=['img', 'points'])]))
"""


@pytest.fixture
def project(mmdet3d: ModuleType, tmp_path: Path) -> Iterator[Path]:
    """The folder of a package beside its configuration, config.py."""
    package = tmp_path / "folder" / "small_project"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "detector.py").write_text(DETECTOR)
    (tmp_path / "config.py").write_text(CONFIG)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    from mmdet3d.registry import MODELS, TRANSFORMS

    for name in [name for name in sys.modules if name.startswith("small_project")]:
        del sys.modules[name]
    MODELS.module_dict.pop("QueryHead", None)
    TRANSFORMS.module_dict.pop("BEVLoadMultiViewImageFromFiles", None)


def build(project: Path) -> Mmdet3dDetector:
    options = Mmdet3dOptions(import_paths=(project / "folder",))
    return build_mmdet3d_teacher(project / "config.py", None, ("CAM_FRONT", "CAM_BACK"), options)


@pytest.fixture
def teacher(project: Path) -> Mmdet3dDetector:
    return build(project)


def frame() -> dict[str, torch.Tensor]:
    images = torch.zeros(1, 2, 4, 6, 3, dtype=torch.uint8)
    images[..., 0] = 200  # red
    inputs = {name: torch.eye(4).repeat(1, 2, 1, 1) for name in ("lidar2img", "cam2img", "cam2lidar", "img_aug")}
    inputs["img_aug"][:, 1, 0, 3] = -32.0
    points = torch.tensor([[[1.0, 0.0, 0.0, 7.0, 0.3], [0.0, 1.0, 0.0, 8.0, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]]])
    return {
        "images": images, "points": points, "point_count": torch.tensor([2]), "lidar_aug": 2 * torch.eye(4)[None],
        **inputs,
    }  # fmt: skip


def test_the_spec_follows_from_the_config(teacher: Mmdet3dDetector) -> None:
    spec = teacher.spec
    assert (spec.axis_order, spec.bev_cell_m, spec.bev_shape_yx, spec.top_k) == ("xy", 1.0, (4, 8), 4)
    assert (spec.image_height_px, spec.image_width_px, spec.cameras) == (4, 6, ("CAM_FRONT", "CAM_BACK"))
    assert spec.image_scale == pytest.approx(0.48) and spec.classes == CLASS_NAMES and not spec.drop_outside


def test_logits_survive_a_decoder_that_writes_into_what_it_reads(teacher: Mmdet3dDetector) -> None:
    with Taps(teacher, ["bbox_head[0][0].dense_heatmap", "bbox_head[0][0].center"], detach=True) as taps:
        found = teacher(**frame())
    tapped = taps.take()
    logits = torch.linspace(-3, 3, 320).reshape(1, 10, 8, 4)
    assert torch.equal(found["heatmap"], logits) and torch.equal(tapped["bbox_head[0][0].dense_heatmap"], logits)
    assert tapped["bbox_head[0][0].center"][0, 0].tolist() == [1.0, 2.0, 6.0]  # still in cells
    half = np.pi / 2
    expected = [
        [-2.0, 1.0, 0.5, 1, 1, 1, half, 1, 1],
        [2.0, 0.0, 0.5, 1, 1, 1, half * 1.5, 1, 1],
        [-3.0, -1.0, 0.5, 1, 1, 1, 0, 1, 1],
        [0] * 9,
    ]
    np.testing.assert_allclose(found["boxes"][0], expected, atol=1e-6)  # by score, on their geometric centre
    np.testing.assert_allclose(found["scores"][0], [0.9, 0.4, 0.2, 0.0])
    assert found["labels"][0].tolist() == [9, 0, 3, 0]
    assert torch.equal(teacher(**frame())["boxes"], found["boxes"])


def test_images_points_and_matrices_arrive_as_mmdet3d_has_them(teacher: Mmdet3dDetector) -> None:
    teacher(**frame())
    detector, head = teacher.__dict__["_detector"], teacher.get_submodule("bbox_head")
    # Its loader gives BGR, which the configured means follow: blue 0 - 100, green 0 - 50, red 200 - 0.
    assert detector.seen["imgs"].shape == (1, 2, 3, 4, 6)
    assert detector.seen["imgs"][0, 1, :, 2, 3].tolist() == [-100.0, -50.0, 200.0]
    assert detector.seen["points"][0].tolist() == [[1.0, 0.0, 0.0, 7.0], [0.0, 1.0, 0.0, 8.0]]
    (meta,) = head.metas
    assert meta["img_aug_matrix"][1, 0, 3] == -32.0 and meta["lidar_aug_matrix"][0, 0] == 2.0
    assert {"cam2img", "cam2lidar", "lidar2img", "box_type_3d", "box_mode_3d"} <= set(meta)


def test_a_loader_is_asked_for_its_order_of_colours(project: Path) -> None:
    (project / "config.py").write_text(CONFIG.replace("LoadMulti", "BEVLoadMulti"))
    teacher = build(project)
    teacher(**frame())
    assert teacher.__dict__["_detector"].seen["imgs"][0, 0, :, 0, 0].tolist() == [100.0, -50.0, 0.0]


# --- BEVFusion itself -------------------------------------------------------------------------------------------------


@pytest.fixture
def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", GOLDEN / "golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bevfusion(
    mmdet3d: ModuleType, golden: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mmdet3dDetector:
    source = os.environ.get("MMDET3D_SOURCE")
    if not source or importlib.util.find_spec("spconv") is None:
        pytest.skip("needs MMDET3D_SOURCE, a checkout of open-mmlab/mmdetection3d, and spconv")
    ops = "projects.BEVFusion.bevfusion.ops"
    for name, functions in (
        (f"{ops}.bev_pool.bev_pool_ext", {"bev_pool_forward": _bev_pool}),
        (f"{ops}.voxel.voxel_layer", {"hard_voxelize": _hard_voxelize}),
    ):
        extension = ModuleType(name)
        for each in ("dynamic_voxelize", "dynamic_point_to_voxel_forward", "dynamic_point_to_voxel_backward"):
            setattr(extension, each, None)
        vars(extension).update(functions)
        monkeypatch.setitem(sys.modules, name, extension)
    config, options = Path(source) / BEVFUSION, Mmdet3dOptions(import_paths=(Path(source),))
    empty = build_mmdet3d_teacher(config, None, CAMERA_NAMES, options)
    torch.save(golden.closed_form_weights(empty.state_dict()), tmp_path / "weights.pth")
    return build_mmdet3d_teacher(config, tmp_path / "weights.pth", CAMERA_NAMES, options)


def _bev_pool(values: Any, cells: Any, lengths: Any, starts: Any, batch: int, z: int, x: int, y: int) -> Any:
    """Stands for a CUDA operator: values [P, C] summed by cell (x, y, z, frame) -> [B, Z, X, Y, C]."""
    cells = cells.long()
    flat = ((cells[:, 3] * z + cells[:, 2]) * x + cells[:, 0]) * y + cells[:, 1]
    return values.new_zeros(batch * z * x * y, values.shape[1]).index_add_(0, flat, values).view(batch, z, x, y, -1)


def _hard_voxelize(points: Any, voxels: Any, cells: Any, counts: Any, size: Any, edges: Any, *rest: Any) -> int:
    """Stands for a compiled operator: mmcv's own, whose cells come as (z, y, x)."""
    from mmcv.ops import Voxelization

    layer = Voxelization(size, edges, voxels.shape[1], voxels.shape[0], deterministic=True).eval()
    found_voxels, found_cells, found_counts = layer(points)
    count = len(found_voxels)
    voxels[:count], cells[:count], counts[:count] = found_voxels, found_cells.flip(1), found_counts
    return count


@pytest.mark.slow
def test_bevfusion_computes_its_own_numbers(bevfusion: Mmdet3dDetector, golden: ModuleType) -> None:
    """Those of tests/unit/models/bevfusion/golden.json, which mmdet3d made without the adapter."""
    if not KEYFRAME.is_dir():
        pytest.skip("the real nuScenes keyframe is not on this machine")
    expected = json.loads((GOLDEN / "golden.json").read_text())
    # The numbers were made with a loader that gave BGR, and without a filter of points.
    assert bevfusion.inputs.images is not None
    bevfusion.inputs = replace(
        bevfusion.inputs,
        images=replace(bevfusion.inputs.images, channels="bgr"),
        points=replace(bevfusion.inputs.points, range_m=None),
    )
    names = ["img_neck[0]", "pts_middle_encoder", "pts_neck[0]", "bbox_head[0][0].dense_heatmap"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # spconv's CPU kernels race
    with Taps(bevfusion, names, detach=True) as taps:
        found = bevfusion(**golden.keyframe_inputs(KEYFRAME))
    torch.set_num_threads(threads)
    for name, tapped in taps.take().items():
        theirs = expected["taps"][name]
        assert list(tapped.shape) == theirs["shape"]
        ours = tapped.flatten()[theirs["flat_index"]].numpy()
        np.testing.assert_allclose(ours, theirs["value"], atol=2e-4 * np.abs(theirs["value"]).max())
        assert tapped.double().abs().sum().item() == pytest.approx(theirs["abs_sum"], rel=1e-4)
    top = expected["top_predictions"]
    boxes = np.array(top["boxes"])
    boxes[:, 2] += boxes[:, 5] / 2
    theirs = np.concatenate([boxes, np.array(top["scores"])[:, None]], axis=1)
    ours = np.concatenate([found["boxes"][0].numpy(), found["scores"][0].numpy()[:, None]], axis=1)
    distance = np.abs(theirs[:, None] - ours[None]).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-3
    assert (found["labels"][0].numpy()[distance.argmin(axis=1)] == top["labels"]).all()
