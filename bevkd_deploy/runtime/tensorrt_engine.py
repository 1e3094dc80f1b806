"""TensorRT and TensorRT-RTX: runs a plan on the GPU it was built for.

One class serves both libraries, through the named-tensor interface that they share since TensorRT 8.5. A plan is
native code: it is loaded only with a sidecar that holds its hash (`load_sidecar` has checked it), and only where the
library's version and the GPU's compute capability are those it was built for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import ArtifactError, BevkdError, CannotRunHere, UsageError
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.graph_spec import TensorSpec
from bevkd_deploy.contracts.sidecar import Sidecar, rebuild_command
from bevkd_deploy.runtime.cuda_driver import CudaDriver
from bevkd_deploy.runtime.engine import Feed, Outputs, check_feed, check_signature

_EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}


class TensorRTEngine:
    """A plan, its execution context, its device buffers and its stream.

    Attributes are those of `Engine`. One frame at a time: the buffers are the engine's own.

    Raises:
        CannotRunHere: no GPU, no library, another library version or another compute capability.
        ArtifactError: the plan is damaged or its tensors are not those of the contract.
    """

    def __init__(self, path: Path, sidecar: Sidecar) -> None:
        self._driver, library = _require(path, sidecar)
        self.name: str = sidecar.library.name
        self.precision = sidecar.precision
        self.version: str = library.__version__
        self.device = self._driver.device_name
        self._inputs, self._outputs = sidecar.inputs, sidecar.outputs
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._pointers: dict[str, int] = {}
        self._driver.start()
        try:
            self._load(path, library)
        except BaseException:
            self.close()
            raise

    def run(self, feed: Feed) -> Outputs:
        """Upload, run and download one frame; see `Engine.run`. Returns when the results are on the host."""
        check_feed(feed, self._inputs)
        if self._context is None:
            raise UsageError("this engine is closed; open it again with open_engine")
        self._driver.activate()
        # The copies are queued: sources stay referenced until the stream has been synchronised.
        arrays = {spec.name: np.ascontiguousarray(feed[spec.name]) for spec in self._inputs}
        for name, array in arrays.items():
            self._driver.upload(self._pointers[name], array)
        if not self._context.execute_async_v3(self._driver.stream):
            raise BevkdError(f"{self.name} could not queue the plan on {self.device}")
        outputs: dict[str, NDArray[Any]] = {}
        for spec in self._outputs:
            outputs[spec.name] = np.empty(spec.shape, dtype=spec.dtype)
            self._driver.download(outputs[spec.name], self._pointers[spec.name])
        self._driver.synchronize()
        return outputs

    def close(self) -> None:
        """Free the context, the engine and the device buffers, in this order."""
        self._context = self._engine = self._runtime = None
        self._driver.close()

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, path: Path, library: ModuleType) -> None:
        self._runtime, self._engine = _deserialise(path, library)
        check_signature(path, _signature(library, self._engine, library.TensorIOMode.INPUT), self._inputs)
        check_signature(path, _signature(library, self._engine, library.TensorIOMode.OUTPUT), self._outputs)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BevkdError(f"{self.name} could not create an execution context: too little free GPU memory")
        self._pointers = {spec.name: self._bind(spec) for spec in (*self._inputs, *self._outputs)}

    def _bind(self, spec: TensorSpec) -> int:
        pointer = self._driver.allocate(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize)
        if not self._context.set_tensor_address(spec.name, pointer):
            raise BevkdError(f"{self.name} refused the buffer of '{spec.name}'")
        return pointer


def _require(path: Path, sidecar: Sidecar) -> tuple[CudaDriver, ModuleType]:
    """The driver and the library, or one message that says everything this machine lacks."""
    driver: CudaDriver | None = None
    library: ModuleType | None = None
    try:
        driver = CudaDriver.load()
        gpu = f"{driver.device_name} (SM {driver.compute_capability})"
    except CannotRunHere as error:
        gpu = str(error)
    try:
        library = importlib.import_module(sidecar.library.name)
        installed = f"{sidecar.library.name} {library.__version__}"
    except (ImportError, OSError) as error:
        installed = f"no {sidecar.library.name} (pip install 'bevkd-deploy[{_EXTRAS[sidecar.library.name]}]'): {error}"
    if driver and library and _fits(driver, library, sidecar):
        return driver, library
    built_for = f"SM {' or '.join(sidecar.sm)}" if sidecar.sm else "any SM"
    if sidecar.target:
        built_for += f" ({sidecar.target})"
    advice = [f"Here, run its ONNX twin: --engine {_twin(path, sidecar)}"]
    if driver:
        advice.append(f"or rebuild the plan on this machine: {rebuild_command(sidecar)}")
    raise CannotRunHere(
        f"{path.name} cannot run on this machine. It was built for {built_for} with {sidecar.library.name} "
        f"{sidecar.library.version}; this machine has {gpu}, and {installed}. {', '.join(advice)}"
    )


def _fits(driver: CudaDriver, library: ModuleType, sidecar: Sidecar) -> bool:
    same_version = str(library.__version__) == sidecar.library.version
    return same_version and (not sidecar.sm or driver.compute_capability in sidecar.sm)


def _twin(path: Path, sidecar: Sidecar) -> str:
    """The ONNX file that the plan was built from: beside it by hash, else the name that export gives it."""
    # The shortest name first: `student.onnx`, the link to the newest export, is what a user would type.
    for candidate in sorted(path.parent.glob("*.onnx"), key=lambda file: (len(file.name), file.name)):
        if sha256_file(candidate) == sidecar.onnx_sha256:
            return candidate.name
    return f"student.{sidecar.precision}.onnx"


def _deserialise(path: Path, library: ModuleType) -> tuple[Any, Any]:
    """The library's runtime and the engine, which must not outlive it."""
    messages: list[str] = []

    class Collector(library.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what the library says when it fails: it returns None and writes the reason to its log."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    logger = Collector()
    runtime = library.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ArtifactError(f"{library.__name__} cannot load {path.name}: {'; '.join(messages) or 'no reason given'}")
    return runtime, engine


def _signature(library: ModuleType, engine: Any, mode: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    return {
        name: (np.dtype(library.nptype(engine.get_tensor_dtype(name))).name, tuple(engine.get_tensor_shape(name)))
        for name in names
        if engine.get_tensor_mode(name) == mode
    }
