"""Plans: the refusals are real; the run itself is tried on a stand-in driver and a stand-in library.

The stand-in driver is a small C library with the driver's interface on host memory, so the ctypes signatures, the
buffers and the order of calls are exercised; the stand-in library has the method names of the real bindings (a test
below compares them) and computes with ONNX Runtime. Whether a plan computes the right thing is for tests/gpu.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bevkd_deploy.contracts.errors import ArtifactError, BevkdError, CannotRunHere, DataError, UsageError
from bevkd_deploy.contracts.sidecar import Library
from bevkd_deploy.runtime import cuda_driver
from bevkd_deploy.runtime.cuda_driver import CudaDriver
from bevkd_deploy.runtime.engine import open_engine

VERSION = "9.9.9"
NO_DRIVER = "libcuda-that-is-not-here.so.1"


class FakeLogger:
    """Stand-in for ILogger."""

    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)


class FakeRuntime:
    """Stand-in for Runtime: a plan is an ONNX file here."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        try:
            return FakeCudaEngine(onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]))
        except Exception as error:
            self.logger.log(FakeLogger.Severity.INFO, "Loaded engine size: 0 MiB")
            self.logger.log(FakeLogger.Severity.ERROR, f"magic tag mismatch ({type(error).__name__})")
            return None


class FakeCudaEngine:
    """Stand-in for ICudaEngine."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.inputs, self.outputs = session.get_inputs(), session.get_outputs()
        self.tensors = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in {tensor.name for tensor in self.inputs} else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name].type

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def create_execution_context(self) -> Any:
        return FakeContext(self)


class FakeContext:
    """Stand-in for IExecutionContext: reads and writes the addresses it was given."""

    def __init__(self, engine: FakeCudaEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        feed = {tensor.name: self._view(tensor).copy() for tensor in self.engine.inputs}
        results = self.engine.session.run([tensor.name for tensor in self.engine.outputs], feed)
        for tensor, value in zip(self.engine.outputs, results, strict=True):
            self._view(tensor)[...] = value
        return bool(stream_handle)

    def _view(self, tensor: Any) -> np.ndarray:
        dtype = fake_nptype(tensor.type)
        size = int(np.prod(tensor.shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[tensor.name])
        return np.frombuffer(memory, dtype).reshape(tensor.shape)


def fake_nptype(dtype: str) -> type:
    return {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(float)": np.float32}[dtype]


def make_library() -> ModuleType:
    library = ModuleType("tensorrt_rtx")
    library.__version__ = VERSION
    library.ILogger, library.Runtime, library.nptype = FakeLogger, FakeRuntime, fake_nptype
    library.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    return library


@pytest.fixture
def plan(tools, artefact: Path) -> Path:
    """student.fp32.rtx4090.plan beside the ONNX file it was built from (its content is that file's)."""
    path = artefact.with_name("student.fp32.rtx4090.plan")
    path.write_bytes(artefact.read_bytes())
    write_plan_sidecar(tools, path, artefact)
    return path


def write_plan_sidecar(tools, path: Path, onnx_path: Path, **changes: Any) -> None:
    from bevkd_deploy.contracts.files import sha256_file

    fields: dict[str, Any] = {
        "kind": "plan",
        "onnx_sha256": sha256_file(onnx_path),
        "target": "rtx4090",
        "sm": ("8.9",),
        "library": Library(name="tensorrt_rtx", version=VERSION),
    }
    tools.make_sidecar(path, **{**fields, **changes})


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in driver")
    path = tmp_path_factory.mktemp("stub") / "libstubcuda.so"
    source = Path(__file__).with_name("stub_cuda.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, source], check=True)
    return path


@pytest.fixture
def gpu(stub_library: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """A machine with one "Stub GPU" of compute capability 8.9, and the stand-in library."""
    monkeypatch.setattr(cuda_driver, "_LIBRARY", str(stub_library))
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", make_library())
    return ctypes.CDLL(str(stub_library))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_LIBRARY", NO_DRIVER)


def test_a_plan_cannot_run_without_a_gpu_and_the_twin_is_named(plan: Path, no_gpu: None) -> None:
    with pytest.raises(CannotRunHere) as caught:
        open_engine(plan)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert "built for SM 8.9 (rtx4090) with tensorrt_rtx 9.9.9" in message
    assert "this machine has no NVIDIA GPU" in message
    assert "--engine student.fp32.onnx" in message
    assert "rebuild" not in message  # it would not run here either


def test_the_twin_is_found_by_its_hash(plan: Path, no_gpu: None) -> None:
    plan.with_name("student.fp32.onnx").rename(plan.with_name("renamed.onnx"))
    plan.with_name("another.onnx").write_bytes(b"not the one")
    with pytest.raises(CannotRunHere, match=r"--engine renamed\.onnx"):
        open_engine(plan)


def test_a_missing_library_is_named_with_its_extra(tools, plan: Path, no_gpu: None) -> None:
    write_plan_sidecar(
        tools,
        plan,
        plan.with_name("student.fp32.onnx"),
        library=Library(name="tensorrt", version="10.3.0"),
        sm=("8.7",),
    )
    with pytest.raises(CannotRunHere, match=r"no tensorrt \(pip install 'bevkd-deploy\[tensorrt\]'\)"):
        open_engine(plan)


def test_a_driver_without_a_gpu_is_no_gpu(plan: Path, gpu: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_CUDA_DEVICES", "0")
    with pytest.raises(CannotRunHere, match="the driver is installed but shows none"):
        open_engine(plan)
    monkeypatch.setenv("STUB_CUDA_DEVICES", "-1")
    with pytest.raises(CannotRunHere, match=r"shows none \(code 100\)"):
        open_engine(plan)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sm": ("12.0",), "target": "rtx5090"}, "built for SM 12.0 (rtx5090)"),
        ({"library": Library(name="tensorrt_rtx", version="9.9.8")}, "with tensorrt_rtx 9.9.8"),
    ],
    ids=["compute capability", "version"],
)
def test_another_gpu_or_version_is_refused_before_loading(
    tools, plan: Path, gpu: ctypes.CDLL, changes: dict[str, Any], expected: str
) -> None:
    write_plan_sidecar(tools, plan, plan.with_name("student.fp32.onnx"), **changes)
    with pytest.raises(CannotRunHere) as caught:
        open_engine(plan)
    message = str(caught.value)
    assert expected in message
    assert "this machine has Stub GPU (SM 8.9), and tensorrt_rtx 9.9.9" in message
    assert "rebuild the plan on this machine: bevkd export" in message
    assert gpu.stub_retained() == 0


def test_runs_on_the_stand_ins_and_frees_everything(tools, plan: Path, feed, gpu: ctypes.CDLL) -> None:
    with open_engine(plan) as engine:
        assert (engine.name, engine.version, engine.precision) == ("tensorrt_rtx", VERSION, "fp32")
        assert engine.device == "Stub GPU"
        assert gpu.stub_live_buffers() == 9  # six inputs, three outputs
        outputs = engine.run(feed)
        assert gpu.stub_pending_copies() == 0  # it waited for the results
        np.testing.assert_allclose(outputs["boxes"], tools.expected_boxes(feed), rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(outputs["scores"], tools.scores)
        np.testing.assert_array_equal(outputs["labels"], tools.labels)
        changed = {**feed, "images": 255 - feed["images"], "pillars": np.asfortranarray(feed["pillars"])}
        np.testing.assert_allclose(engine.run(changed)["boxes"], tools.expected_boxes(changed), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(
            outputs["boxes"], tools.expected_boxes(feed), rtol=1e-5, atol=1e-4
        )  # the caller's own
        with pytest.raises(DataError, match="missing input 'images'"):
            engine.run({name: array for name, array in feed.items() if name != "images"})
    assert (gpu.stub_live_buffers(), gpu.stub_retained()) == (0, 0)
    with pytest.raises(UsageError, match="engine is closed"):
        engine.run(feed)


def test_two_engines_live_side_by_side(tools, plan: Path, feed, gpu: ctypes.CDLL) -> None:
    with open_engine(plan) as first, open_engine(plan) as second:
        second.close()
        np.testing.assert_allclose(first.run(feed)["boxes"], tools.expected_boxes(feed), rtol=1e-5, atol=1e-4)


def test_a_plan_that_does_not_load_gives_the_librarys_reason(tools, plan: Path, gpu: ctypes.CDLL) -> None:
    plan.write_bytes(b"no plan")
    write_plan_sidecar(tools, plan, plan.with_name("student.fp32.onnx"))
    with pytest.raises(ArtifactError, match=r"cannot load student\.fp32\.rtx4090\.plan: magic tag mismatch") as caught:
        open_engine(plan)
    assert "Loaded engine size" not in str(caught.value)
    assert (gpu.stub_live_buffers(), gpu.stub_retained()) == (0, 0)


def test_a_plan_with_other_tensors_is_refused(tools, plan: Path, gpu: ctypes.CDLL) -> None:
    plan.write_bytes(tools.make_graph(output_boxes="bboxes").SerializeToString())
    write_plan_sidecar(tools, plan, plan.with_name("student.fp32.onnx"))
    with pytest.raises(ArtifactError, match="does not follow the graph contract: 'bboxes'"):
        open_engine(plan)
    assert gpu.stub_retained() == 0


def test_a_plan_whose_hash_is_not_the_recorded_one_is_never_loaded(plan: Path, gpu: ctypes.CDLL) -> None:
    plan.write_bytes(plan.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="not the file its sidecar describes"):
        open_engine(plan)


def test_driver_errors_carry_the_drivers_words(gpu: ctypes.CDLL) -> None:
    driver = CudaDriver.load()
    with pytest.raises(BevkdError, match=r"call start\(\) first"):
        driver.synchronize()
    driver.start()
    with pytest.raises(BevkdError, match=r"refused cuMemAlloc_v2: out of memory \(code 2\)"):
        driver.allocate(1 << 40)
    driver.close()
    driver.close()  # a second time does nothing
    assert gpu.stub_retained() == 0


def test_the_stand_ins_have_the_names_of_the_real_bindings() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    pairs = {"Runtime": FakeRuntime, "ICudaEngine": FakeCudaEngine, "IExecutionContext": FakeContext}
    for name, fake in pairs.items():
        methods = [method for method in vars(fake) if not method.startswith("_")]
        assert methods
        assert not [method for method in methods if not hasattr(getattr(trt, name), method)]
    assert hasattr(trt.ICudaEngine, "num_io_tensors")
    assert {"ERROR", "INTERNAL_ERROR"} <= set(trt.ILogger.Severity.__members__)
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
    for member, dtype in (("UINT8", "uint8"), ("INT32", "int32"), ("FLOAT", "float32")):
        assert np.dtype(trt.nptype(getattr(trt.DataType, member))).name == dtype


def test_the_real_library_refuses_what_is_no_plan(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from bevkd_deploy.runtime.tensorrt_engine import _deserialise

    path = tmp_path / "student.plan"
    path.write_bytes(b"no plan" * 100)
    with pytest.raises(ArtifactError, match=r"tensorrt_rtx cannot load student\.plan: .*[Ss]erialization"):
        _deserialise(path, trt)
