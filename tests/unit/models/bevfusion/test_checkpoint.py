"""BEVFusion checkpoints into the real network: the same weights under every name and layout, and every refusal."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import ModelConfig
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.checkpoint import bevfusion_variant, read_bevfusion, with_spconv2_kernels
from bevkd_deploy.models.bevfusion.detector import BevFusion, CameraBackbone
from bevkd_deploy.models.bevfusion.key_maps import Variant
from bevkd_deploy.models.checkpoint import save_detector
from bevkd_deploy.models.factory import build_detector

GEOMETRY = BevFusionGeometry()
GOLDEN_KEYS = json.loads((Path(__file__).parent / "golden.json").read_text())["state_dict"]

#: mmdet3d's name -> mit-han-lab's, from its sources (mit-han-lab/bevfusion@326653d); first match wins.
TO_MIT = (
    (r"img_backbone\.", "encoders.camera.backbone."),
    (r"img_neck\.", "encoders.camera.neck."),
    (r"view_transform\.", "encoders.camera.vtransform."),
    (r"pts_middle_encoder\.", "encoders.lidar.backbone."),
    (r"fusion_layer\.", "fuser."),
    (r"pts_backbone\.", "decoder.backbone."),
    (r"pts_neck\.", "decoder.neck."),
    (r"bbox_head\.decoder\.0\.self_attn\.attn\.", "heads.object.decoder.0.self_attn."),
    (r"bbox_head\.decoder\.0\.cross_attn\.attn\.", "heads.object.decoder.0.multihead_attn."),
    (r"bbox_head\.decoder\.0\.ffn\.layers\.0\.0\.", "heads.object.decoder.0.linear1."),
    (r"bbox_head\.decoder\.0\.ffn\.layers\.1\.", "heads.object.decoder.0.linear2."),
    (r"bbox_head\.decoder\.0\.norms\.0\.", "heads.object.decoder.0.norm1."),
    (r"bbox_head\.decoder\.0\.norms\.1\.", "heads.object.decoder.0.norm2."),
    (r"bbox_head\.decoder\.0\.norms\.2\.", "heads.object.decoder.0.norm3."),
    (r"bbox_head\.", "heads.object."),
)

State = dict[str, Tensor]


def mit_key(key: str) -> str:
    for ours, theirs in TO_MIT:
        if re.match(ours, key):
            return re.sub(ours, theirs, key, count=1)
    raise AssertionError(key)


def as_spconv1(state: State) -> State:
    """Sparse kernels as [kd, kh, kw, in, out]."""
    return {
        key: value.permute(1, 2, 3, 4, 0).contiguous() if value.ndim == 5 else value for key, value in state.items()
    }


def as_mit(state: State) -> State:
    return {mit_key(key): value for key, value in as_spconv1(state).items()}


def random_weights(state: State) -> State:
    """A state dict of the same keys and shapes; no two tensors alike, constants as they are."""

    def value(key: str, own: Tensor) -> Tensor:
        if not own.is_floating_point() or re.search(r"view_transform\.(frustum|dx|bx)$", key):
            return own
        return torch.randn(own.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))

    return {key: value(key, own) for key, own in state.items()}


@pytest.fixture(scope="module")
def weights() -> Callable[[CameraBackbone | None], State]:
    """Weights of a BEVFusion; the same for the same backbone."""
    made: dict[CameraBackbone | None, State] = {}

    def of(camera: CameraBackbone | None) -> State:
        if camera not in made:
            made[camera] = random_weights(BevFusion(GEOMETRY, camera).state_dict())
        return dict(made[camera])

    return of


@pytest.fixture(scope="module")
def lidar(weights: Callable[[CameraBackbone | None], State]) -> State:
    return weights(None)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint as mmengine lays it out."""

    def write(state: State, meta: dict[str, Any] | None = None, name: str = "checkpoint.pth") -> Path:
        torch.save({"meta": meta or {}, "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / name)
        return tmp_path / name

    return write


def equal(network: BevFusion, state: State) -> bool:
    own = network.state_dict()
    return set(own) == set(state) and all(torch.equal(own[key], value) for key, value in state.items())


@pytest.mark.parametrize("camera", ["swin_t", "resnet50", None])
def test_the_same_weights_under_both_names_give_the_same_network(
    weights: Callable[[CameraBackbone | None], State], save: Callable[..., Path], camera: CameraBackbone | None
) -> None:
    state = weights(camera)
    cameras = CAMERA_NAMES if camera else ()
    path = save(state)
    network, report = read_bevfusion(path, GEOMETRY, cameras, sha256_file(path))
    assert equal(network, state)
    assert not network.training
    assert (network.image_channels, network.bbox_head.box_coding) == ("bgr", "mmdet3d")
    assert report.variant == Variant("mmdet3d", camera)
    assert report.sparse_layout == "spconv2"
    assert report.counts == {"loaded": len(state), "renamed": 0, "computed": 0, "ignored": 0}

    path = save(as_mit(state))
    network, report = read_bevfusion(path, GEOMETRY, cameras)
    assert equal(network, state)
    assert (network.image_channels, network.bbox_head.box_coding) == ("rgb", "mit")
    assert network.spec.cameras == cameras
    assert report.variant == Variant("mit", camera)
    assert report.sparse_layout == "spconv1"
    assert report.counts == {"loaded": len(state), "renamed": len(state), "computed": 0, "ignored": 0}
    assert set(report.loaded.values()) == set(as_mit(state))


def test_reading_leaves_the_random_numbers_of_the_run_alone(lidar: State, save: Callable[..., Path]) -> None:
    path = save(lidar)
    before = torch.random.get_rng_state()
    read_bevfusion(path, GEOMETRY, ())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_all_582_tensors_of_mmdet3ds_network_are_covered_under_both_names(
    weights: Callable[[CameraBackbone | None], State], save: Callable[..., Path]
) -> None:
    state = weights("swin_t")
    assert {key: list(value.shape) for key, value in state.items()} == GOLDEN_KEYS
    _, report = read_bevfusion(save(as_mit(state)), GEOMETRY, CAMERA_NAMES)
    assert set(report.loaded) == set(GOLDEN_KEYS)
    assert len(report.loaded) == 582


def test_names_of_the_first_conversion_are_mit_han_labs_weights(
    weights: Callable[[CameraBackbone | None], State], save: Callable[..., Path]
) -> None:
    state = weights("swin_t")
    converted = {key.replace("view_transform.", "vtransform."): value for key, value in state.items()}
    network, report = read_bevfusion(save(converted), GEOMETRY, CAMERA_NAMES)
    assert equal(network, state)
    assert report.variant == Variant("converted", "swin_t")
    assert (network.image_channels, network.bbox_head.box_coding) == ("rgb", "mit")


def test_either_layout_of_sparse_kernels_is_told_by_its_shape(lidar: State, save: Callable[..., Path]) -> None:
    network, report = read_bevfusion(save(as_spconv1(lidar)), GEOMETRY, ())
    assert equal(network, lidar)
    assert report.sparse_layout == "spconv1"
    assert report.counts["renamed"] == 0

    mixed = {
        **lidar,
        "pts_middle_encoder.conv_input.0.weight": as_spconv1(lidar)["pts_middle_encoder.conv_input.0.weight"],
    }
    with pytest.raises(ArtifactError, match=r"sparse kernels: some are \[kd, kh, kw, in, out\] \(spconv 1\)"):
        read_bevfusion(save(mixed), GEOMETRY, ())


def test_a_kernel_whose_shape_does_not_tell_follows_the_others_of_its_file() -> None:
    cube = torch.arange(243.0).view(3, 3, 3, 3, 3)
    wanted = {"cube": cube, "plain": torch.empty(16, 3, 3, 3, 5)}
    for layout in ("spconv1", "spconv2"):
        plain = torch.empty(3, 3, 3, 5, 16) if layout == "spconv1" else torch.empty(16, 3, 3, 3, 5)
        turned, found = with_spconv2_kernels({"cube": cube, "plain": plain}, wanted)
        assert found == layout
        assert turned["plain"].shape == wanted["plain"].shape
        assert torch.equal(turned["cube"], cube.permute(4, 0, 1, 2, 3) if layout == "spconv1" else cube)


def test_safetensors_and_wrapped_names_are_read(lidar: State, save: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(lidar, path)
    network, _ = read_bevfusion(path, GEOMETRY, ())
    assert equal(network, lidar)
    network, report = read_bevfusion(save({f"module.{key}": value for key, value in lidar.items()}), GEOMETRY, ())
    assert equal(network, lidar)
    assert report.counts["renamed"] == len(lidar)


def test_weights_in_half_precision_are_widened_and_their_rounded_constants_computed(
    weights: Callable[[CameraBackbone | None], State], save: Callable[..., Path]
) -> None:
    state = weights("swin_t")
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    network, report = read_bevfusion(save(half), GEOMETRY, CAMERA_NAMES)
    rough = {"view_transform.frustum", "view_transform.dx", "view_transform.bx"}
    assert set(report.computed) == rough
    assert set(report.ignored) == rough
    own = network.state_dict()
    for key, value in state.items():
        assert own[key].dtype == value.dtype
        assert torch.equal(own[key], value if key in rough or not value.is_floating_point() else value.half().float())


def test_every_missing_unexpected_and_wrong_tensor_is_named_in_one_error(
    lidar: State, save: Callable[..., Path]
) -> None:
    broken = {**lidar}
    del broken["pts_backbone.blocks.0.4.bias"], broken["bbox_head.prediction_heads.0.vel.1.weight"]
    broken["bbox_head.decoder.1.norms.0.weight"] = torch.ones(128)
    broken["pts_voxel_encoder.pfn_layers.0.linear.weight"] = torch.ones(64, 10)
    broken["pts_neck.deblocks.0.0.weight"] = torch.ones(256, 64, 1, 1)
    broken["pts_neck.deblocks.0.1.bias"] = torch.full((256,), torch.nan)
    broken["pts_neck.deblocks.0.1.weight"] = torch.ones(256, dtype=torch.int64)
    with pytest.raises(ArtifactError) as caught:
        read_bevfusion(save(broken), GEOMETRY, ())
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert sorted(lines[1:-1]) == sorted(
        [
            "missing: pts_backbone.blocks.0.4.bias [128]",
            "missing: bbox_head.prediction_heads.0.vel.1.weight [2, 64, 1]",
            "unexpected: bbox_head.decoder.1.norms.0.weight [128]",
            "unexpected: pts_voxel_encoder.pfn_layers.0.linear.weight [64, 10]",
            "shape: pts_neck.deblocks.0.0.weight is [256, 64, 1, 1] in the file, [256, 128, 1, 1] in the model",
            "not finite: pts_neck.deblocks.0.1.bias",
            "type: pts_neck.deblocks.0.1.weight is torch.int64 in the file, torch.float32 in the model",
        ]
    )


def test_constants_may_be_missing_but_not_different(
    weights: Callable[[CameraBackbone | None], State], save: Callable[..., Path]
) -> None:
    state = weights("swin_t")
    index = "img_backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"
    fewer = {key: value for key, value in state.items() if key not in (index, "view_transform.dx")}
    network, report = read_bevfusion(save(fewer), GEOMETRY, CAMERA_NAMES)
    assert set(report.computed) == {index, "view_transform.dx"}
    assert equal(network, state)
    with pytest.raises(ArtifactError, match=f"constant: {index} has other values than the geometry gives"):
        read_bevfusion(save({**state, index: state[index].flip(0)}), GEOMETRY, CAMERA_NAMES)


def test_a_lidar_checkpoint_where_cameras_are_asked_for_and_the_reverse(
    lidar: State, weights: Callable[[CameraBackbone | None], State], save: Callable[..., Path]
) -> None:
    path = save(lidar)
    assert bevfusion_variant(path) == Variant("mmdet3d", None)
    with pytest.raises(ArtifactError, match="a BEVFusion of LiDAR alone, but 6 cameras are asked for"):
        read_bevfusion(path, GEOMETRY, CAMERA_NAMES)
    path = save(as_mit(weights("resnet50")))
    assert bevfusion_variant(path) == Variant("mit", "resnet50")
    with pytest.raises(ArtifactError, match=r"cameras \(ResNet-50\) and LiDAR, but no cameras are asked for"):
        read_bevfusion(path, GEOMETRY, ())


def test_another_grid_is_named_with_what_to_write(
    weights: Callable[[CameraBackbone | None], State], save: Callable[..., Path]
) -> None:
    path = save(weights("swin_t"))
    other = BevFusionGeometry(image_size_px=(512, 1408), depth_m=(1.0, 80.0))
    with pytest.raises(ArtifactError) as caught:
        read_bevfusion(path, other, CAMERA_NAMES)
    first, *lines, advice = str(caught.value).splitlines()
    assert first.endswith("was trained for another grid, other images or other classes:")
    assert [line.strip() for line in lines] == [
        "image_size_px is [256, 704] in the checkpoint (view_transform.frustum), [512, 1408] here",
        "depth_m is [1, 60] in the checkpoint (view_transform.frustum), [1, 80] here",
    ]
    assert advice.endswith("teacher.geometry: {image_size_px: [256, 704], depth_m: [1, 60]}")


def test_classes_in_another_order_or_number_are_refused(lidar: State, save: Callable[..., Path]) -> None:
    path = save(lidar, {"dataset_meta": {"classes": list(GEOMETRY.classes)}})
    read_bevfusion(path, GEOMETRY, ())
    swapped = BevFusionGeometry(classes=GEOMETRY.classes[::-1])
    with pytest.raises(ArtifactError, match=r"classes is \[car, truck, .*the same names in another order"):
        read_bevfusion(path, swapped, ())
    fewer = BevFusionGeometry(classes=GEOMETRY.classes[:3])
    with pytest.raises(ArtifactError, match=r"number of classes is 10 in the checkpoint .*, 3 here"):
        read_bevfusion(path, fewer, ())


def test_another_voxel_grid_is_known_from_the_configuration(lidar: State, save: Callable[..., Path]) -> None:
    config = "model = dict(data_preprocessor=dict(voxelize_cfg=dict(voxel_size=[0.1, 0.1, 0.2])))"
    with pytest.raises(ArtifactError, match=r"voxel_size_m is \[0\.1, 0\.1, 0\.2\] in the checkpoint"):
        read_bevfusion(save(lidar, {"cfg": config}), GEOMETRY, ())


def test_other_networks_are_refused_by_name(
    lidar: State,
    save: Callable[..., Path],
    tmp_path: Path,
    tiny_model_config: Callable[..., ModelConfig],
    tiny_spec: GraphSpec,
) -> None:
    config = tiny_model_config()
    path = save_detector(tmp_path / "student.safetensors", build_detector(config, tiny_spec, 0), config)
    with pytest.raises(ArtifactError, match="a network of bevkd's own family: load it with teacher.source: native"):
        read_bevfusion(path, GEOMETRY, CAMERA_NAMES)
    center = {"pts_bbox_head.task_heads.0.reg.0.conv.weight": torch.ones(1)}
    with pytest.raises(ArtifactError, match="It looks like a CenterHead detector such as CenterPoint"):
        read_bevfusion(save(center), GEOMETRY, CAMERA_NAMES)
    maps = {key: value for key, value in as_mit(lidar).items() if not key.startswith("heads.")}
    maps["heads.map.classifier.0.weight"] = torch.ones(1)
    with pytest.raises(ArtifactError, match="It looks like mit-han-lab's BEV segmentation"):
        read_bevfusion(save(maps), GEOMETRY, CAMERA_NAMES)


def test_the_report_tells_everything_in_lines_and_json(lidar: State, save: Callable[..., Path]) -> None:
    state = {**as_mit(lidar), "heads.map.classifier.0.weight": torch.ones(1)}
    path = save(state, {"CLASSES": GEOMETRY.classes})
    _, report = read_bevfusion(path, GEOMETRY, ())
    assert report.lines() == [
        f"{path}: mit-han-lab's BEVFusion, LiDAR alone, sha256 {sha256_file(path)}",
        f"{len(lidar)} tensors loaded, {len(lidar)} of them under another name; sparse kernels as spconv1 has them",
        "ignored, BEV segmentation head beside the detection head: heads.map.classifier.0.weight",
        "not read, no weights: optimizer",
        "the checkpoint confirms: number of classes, classes",
        "not recorded in the checkpoint, taken from the recipe: range_m, voxel_size_m, max_points, bev_stride",
    ]
    found = json.loads(json.dumps(report.as_json()))
    assert found["counts"] == {"loaded": len(lidar), "renamed": len(lidar), "computed": 0, "ignored": 1}
    assert found["variant"] == {"naming": "mit", "camera": None}
    assert found["loaded"]["bbox_head.shared_conv.bias"] == "heads.object.shared_conv.bias"
    assert found["sha256"] == sha256_file(path)
