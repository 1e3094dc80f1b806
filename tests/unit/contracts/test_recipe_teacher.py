"""What a recipe may ask of its teacher."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import RecipeError
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry

TOY = Path(__file__).resolve().parents[2] / "fixtures" / "toy.yaml"
HEATMAP_ONLY = "distill.losses={heatmap: {}}"


def load(*overrides: str) -> Recipe:
    return load_recipe(TOY, overrides).recipe


def problem(*overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load(*overrides)
    assert len(error.value.problems) == 1
    return error.value.problems[0]


def test_any_of_the_metrics_can_be_expected() -> None:
    assert load().teacher.expect is None
    both = load("teacher.expect={mAP: 0.6, NDS: 0.5, tolerance: 0.02, frames: 40}").teacher.expect
    assert both is not None and both.metrics == {"mAP": 0.6, "NDS": 0.5}
    assert (both.tolerance, both.frames) == (0.02, 40)
    one = load("teacher.expect.NDS=0.5").teacher.expect
    assert one is not None and one.metrics == {"NDS": 0.5}


def test_what_cannot_be_expected() -> None:
    assert "needs a metric: mAP, NDS or both" in problem("teacher.expect={tolerance: 0.1}")
    assert "must be less than or equal to 1, got 60" in problem("teacher.expect.mAP=60")
    assert "Did you mean 'mAP'?" in problem("teacher.expect={mAp: 0.6, NDS: 0.5}")


def test_the_old_key_leads_to_the_new_one() -> None:
    assert "unknown key. Did you mean 'expect'?" in problem("teacher.expected_map=0.6")


def test_a_cache_cannot_serve_features() -> None:
    told = problem("teacher.cache=fp16")
    assert "teacher.cache keeps the teacher's head maps, but distill.losses.feature reads features inside it" in told
    told = problem("teacher.cache=fp32", "distill.losses.attention={}")
    assert "distill.losses.feature, distill.losses.attention read features inside it" in told
    assert load("teacher.cache=fp16", HEATMAP_ONLY).teacher.cache == "fp16"


def test_heatmap_losses_need_the_heatmap_alone() -> None:
    every = ("heatmap", "reg", "dim")
    assert load(HEATMAP_ONLY).distill.teacher_maps(every) == ("heatmap",)
    assert load().distill.teacher_maps(every) == ("heatmap",)
    assert load().distill.feature_terms() == ["feature"]


BEVFUSION = "teacher={source: bevfusion, checkpoint: bevfusion.pth}"
NO_COPIES = "distill={losses: {heatmap: {weight: 10}, feature: {weight: 1}}}"


def test_a_bevfusion_checkpoint_is_one_line() -> None:
    teacher = load(BEVFUSION, NO_COPIES).teacher
    assert teacher.model is None and teacher.geometry is None
    geometry = BevFusionGeometry()
    assert geometry.grid_size == (1440, 1440, 40) and geometry.bev_cell_m == pytest.approx(0.6)
    # BEVFusion's configuration has an order of its own; by index a pedestrian would be a traffic cone.
    assert sorted(geometry.classes) == sorted(CLASS_NAMES)
    assert geometry.classes[8:] == ("pedestrian", "traffic_cone")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher={source: bevfusion}", "source bevfusion needs 'checkpoint'"),
        ("teacher={source: mmdet3d, checkpoint: a.pth}", "source mmdet3d needs 'config'"),
        ("teacher={source: native, checkpoint: a.safetensors}", "source native needs 'model'"),
        ("teacher={source: bevfusion, checkpoint: a.pth, config: b.py}",
         "config goes with source: mmdet3d, but source is bevfusion"),
        ("teacher={source: mmdet3d, config: b.py, checkpoint: a.pth, geometry: {}}",
         "geometry goes with source: bevfusion, but source is mmdet3d"),
        ("teacher={source: bevfusion, checkpoint: a.pth, train: {epochs: 1, batch_size: 1, learning_rate: 0.1}}",
         "train goes with source: native, but source is bevfusion"),
    ],
)  # fmt: skip
def test_keys_go_with_their_source(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(override, NO_COPIES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("voxel_size_m: [0.075, 0.08, 0.2]", "BEV cells must be squares"),
        ("voxel_size_m: [0.07, 0.07, 0.2]", "does not divide the x extent 108 m"),
        ("bev_stride: 7", "bev_stride 7 does not divide the grid [1440, 1440]"),
        ("camera_cell_m: 0.4", "the camera's BEV cell 0.8 m (camera_cell_m * camera_downsample) is not the"),
        ("image_size_px: [256, 700]", "must be multiples of feature_stride"),
        ("depth_m: [60, 1]", "depth_m must be 0 < first < last"),
        ("range_m: [54, -54, -5, -54, 54, 3]", "along x they are not"),
    ],
)  # fmt: skip
def test_a_geometry_that_cannot_be_is_refused(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(f"teacher={{source: bevfusion, checkpoint: a.pth, geometry: {{{change}}}}}", NO_COPIES)


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ("distill={inherit: {}}", "distill.inherit copies weights layer by layer"),
        ("distill={losses: {boxes: {weight: 1}}}", "distill.losses.boxes compares dense box maps"),
    ],
)
def test_what_a_foreign_teacher_cannot_teach_is_refused(distill: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(BEVFUSION, distill)
