"""ONNX Runtime: runs the exported graph on any machine, and on NVIDIA GPUs where its GPU build is installed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import onnxruntime as ort

from bevkd_deploy.contracts.errors import ArtifactError, CannotRunHere, UsageError
from bevkd_deploy.contracts.sidecar import Sidecar
from bevkd_deploy.runtime.cuda_driver import CudaDriver
from bevkd_deploy.runtime.engine import Feed, Outputs, Provider, check_feed, check_signature

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

_DTYPES = {"tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(float)": "float32"}

#: ONNX Runtime's scale is 0 verbose .. 4 fatal; errors come back as exceptions anyway.
_LOG_ERRORS_ONLY = 3


class OnnxEngine:
    """An ONNX file in an ONNX Runtime session.

    Attributes are those of `Engine`.

    Raises:
        ArtifactError: the file does not load, or is not the graph that its sidecar describes.
        CannotRunHere: the provider is not available.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, sidecar: Sidecar, *, threads: int | None = None, provider: Provider = "cpu") -> None:
        self.precision = sidecar.precision
        self.version: str = ort.__version__
        self._inputs = sidecar.inputs
        self._outputs = [spec.name for spec in sidecar.outputs]
        self._session: ort.InferenceSession | None = _open_session(path, threads, provider)
        self.device = "cpu" if provider == "cpu" else CudaDriver.load().device_name
        check_signature(path, _signature(self._session.get_inputs()), sidecar.inputs)
        check_signature(path, _signature(self._session.get_outputs()), sidecar.outputs)

    def run(self, feed: Feed) -> Outputs:
        """Run one frame; see `Engine.run`."""
        check_feed(feed, self._inputs)
        if self._session is None:
            raise UsageError("this engine is closed; open it again with open_engine")
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feed)), strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def __enter__(self) -> OnnxEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_session(path: Path, threads: int | None, provider: Provider) -> ort.InferenceSession:
    wanted = PROVIDERS[provider]
    available = ort.get_available_providers()
    if wanted not in available:
        raise CannotRunHere(
            f"ONNX Runtime {ort.__version__} has no {wanted} here; it has {', '.join(available)}. Install "
            "onnxruntime-gpu in place of onnxruntime, or run on the CPU"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    try:
        session = ort.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ArtifactError(f"ONNX Runtime {ort.__version__} cannot load {path.name}: {error}") from error
    # A provider that fails to start is replaced by the CPU without an error; its times would be reported as the GPU's.
    if session.get_providers()[0] != wanted:
        raise CannotRunHere(f"{wanted} did not start (ONNX Runtime fell back to {session.get_providers()[0]})")
    return session


def _signature(nodes: list[ort.NodeArg]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {node.name: (_DTYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes}
