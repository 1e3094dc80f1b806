from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import ArtifactError, CannotRunHere, ExportError, OpNotPortable, UsageError
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.sidecar import load_sidecar, sidecar_path
from bevkd_deploy.contracts.target import load_target
from bevkd_deploy.exporting import export
from bevkd_deploy.exporting.export import ExportOptions, Provenance, export_student
from bevkd_deploy.exporting.plan import build_from_onnx
from bevkd_deploy.runtime.engine import open_engine

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed")
PROVENANCE = Provenance("quickstart", "1" * 64, "2" * 64, "abc1234")
RTX4090 = load_target("rtx4090")


@pytest.fixture
def quick_trace(monkeypatch, fp32_model):
    """Tracing takes seconds and has its own tests: the graph comes from the session."""
    monkeypatch.setattr(export, "trace", lambda *_: copy.deepcopy(fp32_model))
    return fp32_model


@pytest.fixture(scope="module")
def exported(student, spec, feeds, tmp_path_factory):
    """One whole export with nothing replaced: the result, its folder and what the user is told."""
    out = tmp_path_factory.mktemp("run") / "export"
    told: list[str] = []
    options = ExportOptions(plans=("fp16",) if HAS_RTX else (), target=RTX4090)
    return export_student(student, spec, out, options, PROVENANCE, feeds, told.append), out, told


def test_files_and_links(exported):
    _, out, told = exported
    names = {"student.fp32.onnx", "student.fp16.onnx", "student.onnx"}
    if HAS_RTX:
        names |= {"student.fp16.rtx4090.plan", "student.plan"}
        assert (out / "student.plan").resolve().name == "student.fp16.rtx4090.plan"
    assert {path.name for path in out.iterdir()} == names | {f"{name}.json" for name in names}
    assert (out / "student.onnx").resolve().name == "student.fp16.onnx"
    assert [line.split()[1] for line in told[:2]] == ["student.fp32.onnx", "student.fp16.onnx"]


def test_links_are_relative_so_that_a_run_can_be_moved(exported, tmp_path):
    moved = tmp_path / "moved"
    exported[1].rename(moved)
    try:
        assert load_sidecar(moved / "student.onnx").precision == "fp16"
    finally:
        moved.rename(exported[1])


def test_onnx_sidecars(exported, spec):
    for precision, path in exported[0].onnx.items():
        sidecar = load_sidecar(path)
        assert (sidecar.kind, sidecar.precision, sidecar.file) == ("onnx", precision, path.name)
        assert sidecar.sha256 == sidecar.onnx_sha256 == sha256_file(path)
        assert (sidecar.recipe, sidecar.recipe_sha256, sidecar.checkpoint_sha256) == ("quickstart", "1" * 64, "2" * 64)
        assert (sidecar.commit, sidecar.target, sidecar.sm) == ("abc1234", None, ())
        assert sidecar.graph == spec
        assert (sidecar.library.name, sidecar.library.version) == ("onnx", "opset 18")
        assert set(sidecar.precision_table["Conv"]) == ({"fp32"} if precision == "fp32" else {"fp16", "fp32"})
        assert bool(sidecar.fp32_islands) == (precision == "fp16")


def test_parity_is_measured_on_outputs_and_head_maps(exported):
    rows = {(row.tier, row.output): row for row in exported[0].parity}
    outputs = {"boxes", "scores", "labels", "heatmap", "reg", "height", "dim", "rot", "vel"}
    assert set(rows) == {(tier, output) for tier in ("fp32", "fp16") for output in outputs}
    for (tier, output), row in rows.items():
        assert row.result == "pass"
        assert (row.reference, row.candidate, row.nonfinite) == ("student-torch", f"onnx-{tier}", 0)
        assert row.rel_l2 < (1e-5 if tier == "fp32" else 1e-2), (tier, output)
    # FP16 rounds: were the two the same, the typed file would not be typed.
    assert rows["fp16", "heatmap"].rel_l2 > 10 * rows["fp32", "heatmap"].rel_l2
    sidecar = load_sidecar(exported[0].onnx["fp16"])
    assert set(sidecar.parity) == {row for key, row in rows.items() if key[0] == "fp16"}


@needs_rtx
def test_plan_sidecar(exported):
    result, out, _ = exported
    sidecar = load_sidecar(out / "student.plan")
    assert (sidecar.kind, sidecar.target, sidecar.sm) == ("plan", "rtx4090", ("8.9",))
    assert sidecar.onnx_sha256 == sha256_file(result.onnx["fp16"])
    assert sidecar.sha256 == sha256_file(result.plans["fp16"].path) != sidecar.onnx_sha256
    assert sidecar.library.name == "tensorrt_rtx"
    assert sidecar.build_seconds is not None
    assert sidecar.parity == load_sidecar(result.onnx["fp16"]).parity
    assert json.loads(sidecar_path(out / "student.plan").read_text())["schema"] == "bevkd.sidecar/1"


def test_the_artefact_runs_behind_the_runtime(exported, feeds):
    with open_engine(exported[1] / "student.onnx") as engine:
        outputs = engine.run(feeds[0])
    assert np.isfinite(outputs["boxes"]).all()


def test_a_graph_that_computes_something_else_is_refused(quick_trace, student, spec, feeds, tmp_path):
    bias = next(t for t in quick_trace.graph.initializer if t.name == "bbox_head.height.bias")
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + np.float32(0.01)).tobytes()
    with pytest.raises(
        ExportError, match=r"student.fp32.onnx does not compute.*limit 0.0001.*height: largest difference 0.01"
    ):
        export_student(student, spec, tmp_path, ExportOptions(), PROVENANCE, feeds)
    assert {path.name for path in tmp_path.iterdir()} == {"student.fp32.onnx"}
    with pytest.raises(ArtifactError, match="no sidecar"):
        load_sidecar(tmp_path / "student.fp32.onnx")


def test_an_operator_that_is_not_portable_is_refused(quick_trace, student, spec, feeds, tmp_path):
    node = next(node for node in quick_trace.graph.node if node.op_type == "ScatterND")
    node.attribute.add(name="reduction", type=3, s=b"add")
    with pytest.raises(OpNotPortable, match="pts_middle_encoder/ScatterND.*reduction 'add'"):
        export_student(student, spec, tmp_path, ExportOptions(), PROVENANCE, feeds)


def test_fp16_overflow_is_refused(quick_trace, student, spec, feeds, tmp_path, monkeypatch):
    """The weights fit, what they make of the input does not. FP32 parity would stop it first: it is let through."""
    bias = next(t for t in quick_trace.graph.initializer if t.name == "pts_backbone.blocks.0.0.0.bias")
    bias.raw_data = np.full(bias.dims, 65000.0, np.float32).tobytes()
    scale = next(t for t in quick_trace.graph.initializer if t.name == "fusion_layer.conv.0.bias")
    scale.raw_data = np.full(scale.dims, 65000.0, np.float32).tobytes()
    monkeypatch.setattr(export, "_require_parity", lambda *_: None)
    with pytest.raises(ExportError, match=r"do not fit FP16.*pts_backbone.blocks.0.0.0/Conv"):
        export_student(student, spec, tmp_path, ExportOptions(), PROVENANCE, feeds)


@pytest.mark.usefixtures("quick_trace")
def test_onnx_is_written_where_the_plan_cannot_be_built(student, spec, feeds, tmp_path):
    options = ExportOptions(plans=("fp16",), target=load_target("orin_nano"))
    with pytest.raises(CannotRunHere) as caught:
        export_student(student, spec, tmp_path, options, PROVENANCE, feeds)
    message = str(caught.value)
    assert "no plan for orin_nano (SM 8.7) can be built on this machine" in message
    assert "student.fp16.onnx and student.fp16.onnx.json" in message
    assert "`bevkd export --run <run directory> --trt fp16 --target orin_nano`" in message
    assert load_sidecar(tmp_path / "student.onnx").precision == "fp16"
    assert not (tmp_path / "student.plan").is_symlink()


@needs_rtx
def test_plans_of_earlier_weights_go_and_others_stay(quick_trace, student, spec, feeds, tmp_path, monkeypatch):
    options = ExportOptions(precisions=("fp32",), plans=("fp32",), target=RTX4090)
    export_student(student, spec, tmp_path, options, PROVENANCE, feeds)
    again: list[str] = []
    onnx_only = ExportOptions(precisions=("fp32",))
    export_student(student, spec, tmp_path, onnx_only, PROVENANCE, feeds, again.append)
    assert load_sidecar(tmp_path / "student.plan").kind == "plan"  # same weights, same bytes: still good
    assert not any("removed" in line for line in again)
    quick_trace.producer_version = "other"
    export_student(student, spec, tmp_path, onnx_only, PROVENANCE, feeds, again.append)
    assert "removed student.fp32.rtx4090.plan: it was built from an earlier export" in again
    assert {path.name for path in tmp_path.iterdir()} == {
        "student.fp32.onnx", "student.fp32.onnx.json", "student.onnx", "student.onnx.json"
    }  # fmt: skip


@needs_rtx
def test_a_plan_from_a_copied_onnx(exported, tmp_path):
    """What a board does: ONNX and sidecar are copied there, the plan is built beside them."""
    source: Path = exported[0].onnx["fp16"]
    for path in (source, sidecar_path(source)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plan = build_from_onnx(tmp_path / source.name, load_target("l4"))
    assert plan.path.name == "student.fp16.l4.plan"
    assert load_sidecar(plan.path) == plan.sidecar
    with pytest.raises(ArtifactError, match="is a plan"):
        build_from_onnx(plan.path, load_target("l4"))


def test_a_changed_onnx_is_not_built(exported, tmp_path):
    source: Path = exported[0].onnx["fp16"]
    (tmp_path / source.name).write_bytes(source.read_bytes() + b"\0")
    sidecar_path(tmp_path / source.name).write_bytes(sidecar_path(source).read_bytes())
    with pytest.raises(ArtifactError, match="not the file its sidecar describes"):
        build_from_onnx(tmp_path / source.name, RTX4090)


def test_what_cannot_be_asked_for(student, spec, tmp_path):
    with pytest.raises(UsageError, match="at least one frame"):
        export_student(student, spec, tmp_path, ExportOptions(), PROVENANCE, [])
    with pytest.raises(UsageError, match="precision int8"):
        ExportOptions(precisions=("fp32", "int8"))
    with pytest.raises(UsageError, match="give a target"):
        ExportOptions(plans=("fp16",))
    assert ExportOptions(precisions=("fp16",)).onnx_precisions == ("fp32", "fp16")
