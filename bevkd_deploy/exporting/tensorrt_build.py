"""Typed ONNX to TensorRT plan, with `tensorrt` or `tensorrt_rtx`. Needs no torch, so a board can build its own plan.

TensorRT-RTX compiles ahead of time for a list of compute capabilities and needs no GPU. TensorRT compiles and times
kernels on the GPU of this machine, so a plan for a Jetson or a data-centre GPU is built on one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevkd_deploy.contracts.errors import CannotRunHere, ExportError
from bevkd_deploy.contracts.files import write_atomic
from bevkd_deploy.contracts.target import EngineLibrary, Target
from bevkd_deploy.exporting.tensorrt_library import TensorRTModule, load_tensorrt
from bevkd_deploy.runtime.cuda_driver import CudaDriver

#: (phase, steps done, steps in all)
Progress = Callable[[str, int, int], None]

#: A plan records the name of its network; unnamed networks get a running number, so that equal builds differ. Named
#: ones are equal from a fresh process. Later builds of one process may still order their tables differently (the
#: library sorts some by address): the ONNX hash says what is in a plan, the plan hash which file it is.
NETWORK_NAME = "bevkd_student"


@dataclass(frozen=True)
class BuildReport:
    """How a plan was built.

    Attributes:
        library: tensorrt or tensorrt_rtx.
        version: of the library.
        sm: compute capabilities that the plan runs on, such as ("8.9",).
        build_seconds: wall time of the builder, without parsing.
        log: warnings of the library.
    """

    library: EngineLibrary
    version: str
    sm: tuple[str, ...]
    build_seconds: float
    log: tuple[str, ...]


def build_plan(
    onnx_path: Path | str, plan_path: Path | str, target: Target, progress: Progress | None = None
) -> BuildReport:
    """Build a plan for a target with the first of its libraries that can do it on this machine.

    Args:
        onnx_path: typed ONNX with static shapes.
        plan_path: the .plan file.
        target: device to build for.
        progress: called from the builder's threads, where the library reports progress.

    Raises:
        CannotRunHere: no library of the target is installed here, or none can build for it on this machine.
        ExportError: the library refuses the graph; its messages are quoted.
    """
    library, members = choose_library(target)
    plan, seconds, log = _build(library, Path(onnx_path), members, progress, target)

    def write(temporary: Path) -> None:
        temporary.write_bytes(plan)

    write_atomic(plan_path, write)
    return BuildReport(library.flavour, library.version, (target.sm,), seconds, tuple(log))


def choose_library(target: Target) -> tuple[TensorRTModule, list[Any]]:
    """The library that will build for a target here, and the compute capabilities to compile for.

    The list is empty where the library builds for the GPU of this machine.

    Raises:
        CannotRunHere: with one reason per library of the target.
    """
    reasons = []
    for flavour in target.engine.libraries:
        try:
            library = load_tensorrt((flavour,))
            return library, _members(library, target)
        except CannotRunHere as error:
            reasons.append(str(error))
    raise CannotRunHere(
        f"no plan for {target.name} (SM {target.sm}) can be built on this machine: {'; '.join(reasons)}"
    )


def _members(library: TensorRTModule, target: Target) -> list[Any]:
    name = f"{library.flavour} {library.version}"
    if "strong_typing" not in library.capabilities:
        raise CannotRunHere(f"{name} has no strongly typed networks; TensorRT 10 or newer is needed")
    if "compute_capabilities" in library.capabilities:
        known = library.compute_capabilities()
        if target.sm not in known:
            raise CannotRunHere(
                f"{name} compiles for SM {', '.join(known)}, not {target.sm}; full TensorRT does, on the device"
            )
        return [known[target.sm]]
    here = CudaDriver.load().compute_capability
    if here != target.sm:
        raise CannotRunHere(
            f"{name} builds for the GPU it runs on, which is SM {here} here; build on the {target.name} itself"
        )
    return []


def _build(
    library: TensorRTModule, onnx_path: Path, members: list[Any], progress: Progress | None, target: Target
) -> tuple[bytes, float, list[str]]:
    trt = library.module
    messages: list[tuple[str, str]] = []
    logger = _make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.name = NETWORK_NAME
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        raise ExportError(_failure("parse", library, onnx_path, target, _parser_messages(parser) + messages))
    config = _configure(library, builder, members, progress)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if plan is None:
        raise ExportError(_failure("build", library, onnx_path, target, messages))
    return bytes(plan), seconds, [text for severity, text in messages if severity == "WARNING"]


def _configure(library: TensorRTModule, builder: Any, members: list[Any], progress: Progress | None) -> Any:
    config = builder.create_builder_config()
    if "tf32" in library.capabilities:
        config.clear_flag(library.module.BuilderFlag.TF32)  # on by default: fp32 would not mean fp32
    if members:
        config.num_compute_capabilities = len(members)
        for position, member in enumerate(members):
            config.set_compute_capability(member, position)
    if progress is not None and "progress" in library.capabilities:
        config.progress_monitor = _make_monitor(library.module, progress)
    return config


def _parser_messages(parser: Any) -> list[tuple[str, str]]:
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    return [("ERROR", f"node '{error.node_name()}' ({error.node_operator()}): {error.desc()}") for error in errors]


def _failure(
    verb: str, library: TensorRTModule, onnx_path: Path, target: Target, messages: list[tuple[str, str]]
) -> str:
    errors = [text for severity, text in messages if "ERROR" in severity]
    hint = ""
    if any("FP32 GEMM" in text for text in errors):
        hint = f" SM {target.sm} has no FP32 matrix multiplication in this library: build fp16 (--trt fp16)."
    said = "; ".join(dict.fromkeys(errors)) or "no reason given"
    name = f"{library.flavour} {library.version}"
    return f"{name} cannot {verb} {onnx_path.name} for SM {target.sm}.{hint} It says: {said}"


def _make_logger(trt: Any, messages: list[tuple[str, str]]) -> Any:
    """A logger that keeps warnings and errors: a failed build returns None and explains itself nowhere else."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("WARNING", "ERROR", "INTERNAL_ERROR"):
                messages.append((severity.name, text))

    return Collector()


def _make_monitor(trt: Any, progress: Progress) -> Any:
    """Adapter from the library's nested phases to `progress`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self._steps[phase_name])
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name)
            progress(phase_name, steps, steps)

    return Monitor()
