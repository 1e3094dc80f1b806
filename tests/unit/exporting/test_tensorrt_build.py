"""Plans are built here without a GPU, by TensorRT-RTX; what needs full TensorRT is checked up to its error."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevkd_deploy.contracts.errors import CannotRunHere, ExportError, UsageError
from bevkd_deploy.contracts.target import Target, load_target
from bevkd_deploy.exporting.onnx_export import save_model
from bevkd_deploy.exporting.precision import to_fp16
from bevkd_deploy.exporting.tensorrt_build import NETWORK_NAME, build_plan, choose_library
from bevkd_deploy.exporting.tensorrt_library import load_tensorrt

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def target_of(sm: str, *libraries: str) -> Target:
    libraries = libraries or ("tensorrt_rtx",)
    engine = {"libraries": libraries, "versions": dict.fromkeys(libraries, "any")}
    return Target.model_validate({**load_target("rtx4090").model_dump(), "sm": sm, "engine": engine})


@pytest.fixture(scope="module")
def no_module():
    """An import_module under which no TensorRT is installed."""
    real = importlib.import_module

    def find(name, *arguments):
        if name.startswith("tensorrt"):
            raise ImportError(f"No module named '{name}'")
        return real(name, *arguments)

    return find


@pytest.fixture
def gemm(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="multiply")
    body = helper.make_graph(
        [node], "test", values[:1], values[1:], [numpy_helper.from_array(np.eye(8, dtype="f4"), "w")]
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return save_model(model, tmp_path / "gemm.onnx")


@needs_rtx
@pytest.mark.parametrize("sm", ["7.5", "8.0", "8.6", "8.9", "12.0"])
def test_fp16_student_builds_for_every_rtx_target(fp32_model, tmp_path, sm):
    source = save_model(to_fp16(fp32_model), tmp_path / "student.onnx")
    report = build_plan(source, tmp_path / "student.plan", target_of(sm))
    assert (report.library, report.sm) == ("tensorrt_rtx", (sm,))
    assert report.version == importlib.import_module("tensorrt_rtx").__version__
    assert 0 < report.build_seconds < 60
    assert (tmp_path / "student.plan").stat().st_size > source.stat().st_size


@needs_rtx
def test_fp32_student_builds(fp32_model, tmp_path):
    report = build_plan(save_model(fp32_model, tmp_path / "s.onnx"), tmp_path / "s.plan", target_of("8.9"))
    assert report.sm == ("8.9",)


@needs_rtx
def test_equal_builds_give_equal_bytes(gemm, tmp_path):
    plans = [tmp_path / "first.plan", tmp_path / "second.plan"]
    for plan in plans:
        build_plan(gemm, plan, target_of("8.9"))
    assert plans[0].read_bytes() == plans[1].read_bytes()
    assert NETWORK_NAME.encode() in plans[0].read_bytes()  # an unnamed network gets a running number


@needs_rtx
def test_targets_get_their_own_plans(gemm, tmp_path):
    for sm in ("8.9", "12.0"):
        build_plan(gemm, tmp_path / f"{sm}.plan", target_of(sm))
    assert (tmp_path / "8.9.plan").read_bytes() != (tmp_path / "12.0.plan").read_bytes()


@needs_rtx
def test_progress_is_told(gemm, tmp_path):
    calls = []
    build_plan(gemm, tmp_path / "gemm.plan", target_of("8.9"), lambda *call: calls.append(call))
    assert calls
    assert all(0 <= done <= total for _, done, total in calls)
    finished = {phase for phase, done, total in calls if done == total}
    assert finished == {phase for phase, _, _ in calls}


@needs_rtx
def test_fp32_matrix_multiplication_on_turing_is_explained(gemm, tmp_path):
    with pytest.raises(ExportError, match=r"SM 7.5 has no FP32 matrix multiplication.*--trt fp16.*FP32 GEMM"):
        build_plan(gemm, tmp_path / "gemm.plan", target_of("7.5"))
    assert not (tmp_path / "gemm.plan").exists()


@needs_rtx
def test_what_the_parser_says_is_quoted(tmp_path):
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]),
    ]
    body = helper.make_graph([helper.make_node("Unique", ["x"], ["y"], name="group")], "test", values[:1], values[1:])
    path = tmp_path / "unique.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(ExportError, match=r"tensorrt_rtx [\d.]+ cannot parse unique.onnx.*'group' \(Unique\)"):
        build_plan(path, tmp_path / "unique.plan", target_of("8.9"))


@needs_rtx
@pytest.mark.parametrize("sm", ["8.7", "9.0", "10.0", "11.0"])
def test_rtx_says_what_it_compiles_for(sm):
    with pytest.raises(CannotRunHere, match=rf"compiles for SM 7.5, .*12.0.*, not {sm}; full TensorRT"):
        choose_library(target_of(sm))


@needs_rtx
def test_the_next_library_is_taken_where_the_first_is_missing(monkeypatch):
    real = importlib.import_module

    def without_tensorrt(name, *arguments):
        if name == "tensorrt":
            raise ImportError("No module named 'tensorrt'")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without_tensorrt)
    library, members = choose_library(target_of("8.9", "tensorrt", "tensorrt_rtx"))
    assert (library.flavour, [member.name for member in members]) == ("tensorrt_rtx", ["SM89"])


@needs_rtx
def test_capabilities_of_rtx():
    library = load_tensorrt(("tensorrt_rtx",))
    assert library.capabilities == {"strong_typing", "compute_capabilities", "progress", "tf32"}
    known = library.compute_capabilities()
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(known)
    assert known["12.0"].name == "SM120"


def test_a_missing_library_comes_with_the_command_that_installs_it(monkeypatch, no_module):
    monkeypatch.setattr(importlib, "import_module", no_module)
    with pytest.raises(CannotRunHere, match=r'tensorrt_rtx is not installed.*pip install "bevkd-deploy\[rtx\]"'):
        load_tensorrt(("tensorrt_rtx",))
    with pytest.raises(
        CannotRunHere, match=r"no plan for rtx4090 \(SM 8.9\).*tensorrt_rtx.*\[rtx\].*\[tensorrt\].*JetPack"
    ):
        choose_library(target_of("8.9", "tensorrt_rtx", "tensorrt"))
    with pytest.raises(UsageError, match="at least one"):
        load_tensorrt(())


def fake_tensorrt(**flags) -> SimpleNamespace:
    """What `choose_library` looks at in a full TensorRT: it builds for the GPU of the machine."""
    return SimpleNamespace(
        __version__="10.3.0",
        NetworkDefinitionCreationFlag=SimpleNamespace(**flags),
        IBuilderConfig=SimpleNamespace(progress_monitor=None),
        BuilderFlag=SimpleNamespace(TF32=0),
        IProgressMonitor=object,
    )


def with_library(monkeypatch, module, sm: str) -> None:
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name, *a: module if name == "tensorrt" else real(name, *a))
    driver = SimpleNamespace(load=lambda: SimpleNamespace(compute_capability=sm))
    monkeypatch.setattr("bevkd_deploy.exporting.tensorrt_build.CudaDriver", driver)


def test_full_tensorrt_builds_on_the_device_alone(monkeypatch):
    with_library(monkeypatch, fake_tensorrt(STRONGLY_TYPED=1), sm="8.7")
    library, members = choose_library(target_of("8.7", "tensorrt"))
    assert (library.flavour, members) == ("tensorrt", [])
    with pytest.raises(CannotRunHere, match="SM 8.7 here; build on the rtx4090 itself"):
        choose_library(target_of("9.0", "tensorrt"))


def test_weakly_typed_tensorrt_is_refused(monkeypatch):
    with_library(monkeypatch, fake_tensorrt(EXPLICIT_BATCH=0), sm="8.7")
    with pytest.raises(CannotRunHere, match=r"tensorrt 10.3.0 has no strongly typed networks"):
        choose_library(target_of("8.7", "tensorrt"))


def test_a_board_needs_neither_torch_nor_onnx_to_build():
    code = "import sys, bevkd_deploy.exporting.plan; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
