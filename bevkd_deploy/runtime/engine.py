"""The interface of everything that runs an exported graph, and the one place that picks an implementation.

An engine takes the six named arrays of `GraphSpec.inputs` and returns the three of `GraphSpec.outputs`. It checks
them once, at this border; nothing behind it checks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import ArtifactError, DataError
from bevkd_deploy.contracts.graph_spec import TensorSpec
from bevkd_deploy.contracts.sidecar import Sidecar, load_sidecar

Feed = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]

#: Where ONNX Runtime runs; TensorRT plans know their own place.
Provider = Literal["cpu", "cuda", "tensorrt"]


class Engine(Protocol):
    """A loaded artefact, ready to run. Use it as a context manager, or call `close`.

    Attributes:
        name: onnxruntime, tensorrt or tensorrt_rtx.
        precision: of the artefact: fp32, fp16, ...
        version: of the library.
        device: "cpu", or the name of the GPU.
    """

    name: str
    precision: str
    version: str
    device: str

    def run(self, feed: Feed) -> Outputs:
        """Run one frame.

        Args:
            feed: the arrays of `GraphSpec.inputs` by name.

        Returns:
            The arrays of `GraphSpec.outputs` by name, owned by the caller.

        Raises:
            DataError: an array is missing, unknown, or of another shape or dtype.
        """

    def close(self) -> None:
        """Free the engine's memory; a closed engine cannot run."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_engine(
    path: Path | str, sidecar: Sidecar | None = None, *, threads: int | None = None, provider: Provider = "cpu"
) -> Engine:
    """Load an artefact with the library it was made for.

    Args:
        path: `.onnx` (ONNX Runtime) or `.plan` (TensorRT or TensorRT-RTX, as the sidecar says).
        sidecar: what `load_sidecar(path)` returned, where the caller has it already.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.
        provider: where ONNX Runtime runs.

    Raises:
        ArtifactError: the artefact is of another kind, damaged, or does not match its sidecar.
        CannotRunHere: this machine lacks the GPU, library or compute capability.
    """
    sidecar = sidecar or load_sidecar(path)
    path = Path(path).resolve()
    # Each library is imported where it is used: a board with TensorRT alone has no ONNX Runtime, a laptop no TensorRT.
    if sidecar.kind == "onnx":
        from bevkd_deploy.runtime.onnx_engine import OnnxEngine

        return OnnxEngine(path, sidecar, threads=threads, provider=provider)
    from bevkd_deploy.runtime.tensorrt_engine import TensorRTEngine

    return TensorRTEngine(path, sidecar)


def check_feed(feed: Feed, inputs: Sequence[TensorSpec]) -> None:
    """Compare a feed with the graph's inputs; all differences are named at once.

    Raises:
        DataError: names, dtypes or shapes differ.
    """
    problems = [f"unknown input '{name}'" for name in feed if name not in {spec.name for spec in inputs}]
    for spec in inputs:
        array = feed.get(spec.name)
        if array is None:
            problems.append(f"missing input '{spec.name}' ({spec.meaning})")
        elif array.dtype != np.dtype(spec.dtype) or array.shape != spec.shape:
            got = f"{array.dtype} {list(array.shape)}"
            problems.append(f"'{spec.name}' is {got}, expected {spec.dtype} {list(spec.shape)}")
    if problems:
        raise DataError(f"the feed does not fit the graph: {'; '.join(problems)}. Make it with runtime.Preprocessor")


def check_signature(path: Path, found: Mapping[str, tuple[str, tuple[int, ...]]], specs: Sequence[TensorSpec]) -> None:
    """Compare the inputs or outputs that a library reports with the contract.

    Args:
        path: artefact, for the message.
        found: name to (dtype, shape), as the library reports them.
        specs: the contract's inputs or outputs.

    Raises:
        ArtifactError: they differ.
    """
    expected = {spec.name: (str(spec.dtype), tuple(spec.shape)) for spec in specs}
    if dict(found) != expected:
        wrong = sorted({name for name in {*found, *expected} if found.get(name) != expected.get(name)})
        details = "; ".join(f"'{name}' is {found.get(name)}, its sidecar says {expected.get(name)}" for name in wrong)
        raise ArtifactError(f"{path.name} does not follow the graph contract: {details}. Export it again")
