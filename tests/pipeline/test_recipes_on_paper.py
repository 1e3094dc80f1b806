"""Full-size recipes without a GPU or data: the dry run, and the engine of an untrained student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.contracts.sidecar import load_sidecar

from .conftest import RECIPES


def test_dry_run_lists_stages_inputs_and_sizes(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    done = bevkd("distill", str(RECIPES / "orin_small.yaml"), "--dry-run", cwd=tmp_path)
    for word in ("data", "missing", "NUSCENES_ROOT", "teacher", "student model", "M parameters", "128x128", "agx_orin"):
        assert word in done.err + done.out, word
    assert list(tmp_path.iterdir()) == []


def test_untrained_export_writes_a_plan(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    bevkd(
        "export", "--recipe", str(RECIPES / "orin_small.yaml"), "--untrained", "--trt", "fp16", "--target", "l4",
        cwd=tmp_path,
    )  # fmt: skip
    run = tmp_path / "runs" / "orin_small" / "latest"
    plan = run / "export" / "student.fp16.l4.plan"
    sidecar = load_sidecar(plan)
    assert plan.stat().st_size > 1e6
    assert (sidecar.target, sidecar.sm, sidecar.checkpoint_sha256) == ("l4", ("8.9",), "untrained")
    assert sidecar.graph.bev_shape_yx == (128, 128)
    assert sidecar.graph.pillar_shape_yx == (512, 512)


def test_a_target_that_only_the_device_can_build_for(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    done = bevkd(
        "export", "--recipe", str(RECIPES / "orin_small.yaml"), "--untrained", "--trt", "fp16", "--target", "agx_orin",
        cwd=tmp_path, code=4,
    )  # fmt: skip
    assert "8.7" in done.err and "Traceback" not in done.err
    assert (tmp_path / "runs" / "orin_small" / "latest" / "export" / "student.fp16.onnx").is_file()


def test_the_quickstart_teacher_is_the_one_the_recipe_names() -> None:
    teacher = load_recipe(RECIPES / "quickstart.yaml").recipe.teacher
    assert teacher.checkpoint is not None and teacher.sha256 is not None
    assert teacher.expect is not None and (teacher.expect.mAP or 0) >= 0.45
    weights = RECIPES / teacher.checkpoint
    assert weights.stat().st_size <= 8_000_000
    assert sha256_file(weights) == teacher.sha256
