"""Capturing intermediate tensors by dotted path, without leaving anything behind.

A tap is the dotted name of a module, then the way into a nested output:

    pts_neck                        what the module returns, or the only item of a list that it returns
    pts_neck[0]                     an item of a list or tuple
    bbox_head[heatmap]              an entry of a dict
    bbox_head.dense_heatmap         the same, where the last part is no module: a key or an attribute of the output
    bbox_head[0][0].dense_heatmap   several steps
    pts_backbone.blocks.*           every module that fits; how many must be said

In a pattern `*` and `?` stay within one part, `**` stands for any number of parts (at the end for at least one). A step
by name looks through lists and tuples of one element.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.suggest import did_you_mean

_GRAMMAR = re.compile(r"^(?P<module>[\w*?]+(?:\.[\w*?]+)*)(?P<steps>(?:\[\w+\](?:\.\w+)*)*)$")
_LISTED = 12
#: Names that wrappers put into the middle of a path; a recipe knows nothing of wrappers.
_WRAPPER_PART = "_checkpoint_wrapped_module"


@dataclass(frozen=True)
class TapPath:
    """Where to listen, and how many modules that must be.

    Attributes:
        path: as the module docstring describes.
        count: modules that the path must match; None means one, and is not allowed for a pattern.
    """

    path: str
    count: int | None = None

    def __post_init__(self) -> None:
        if _GRAMMAR.match(self.path) is None:
            raise UsageError(
                f"tap '{self.path}' is malformed; write a dotted module path, then steps into its output: "
                "pts_backbone[1], bbox_head.heatmap, bbox_head[0][0].dense_heatmap"
            )
        if self.count is not None and self.count < 1:
            raise UsageError(f"tap '{self.path}': count must be at least 1, got {self.count}")

    @classmethod
    def parse(cls, written: str | Mapping[str, Any] | TapPath) -> TapPath:
        """From a path, or a mapping {path, count}.

        Raises:
            UsageError: malformed, or the mapping has other keys.
        """
        if isinstance(written, TapPath):
            return written
        if isinstance(written, str):
            return cls(written)
        if "path" not in written or set(written) - {"path", "count"}:
            raise UsageError(f"a tap is a path or a mapping of path and count, got the keys {sorted(written)}")
        return cls(written["path"], written.get("count"))

    @property
    def is_pattern(self) -> bool:
        """Whether it may match several modules."""
        return _has_glob(self.path)

    def resolve(self, modules: Mapping[str, nn.Module], role: str = "model") -> dict[str, TapTarget]:
        """The modules that the path names, by the tap's name without wildcards, in the order of the model.

        Args:
            modules: every module of the model by dotted path, from `modules_by_path`.
            role: what messages call the model.

        Raises:
            UsageError: no module or another number of them; says what is there.
        """
        match = _GRAMMAR.match(self.path)
        assert match is not None  # checked when the path was made
        parts = match["module"].split(".")
        for cut in range(len(parts), 0, -1):
            names = [name for name in modules if _fits(name.split("."), parts[:cut])]
            keys = parts[cut:]
            if names and not any(_has_glob(key) for key in keys):  # a wildcard names modules, never keys
                break
        else:
            raise UsageError(
                f"tap '{self.path}': the {role} has no module '{match['module']}'.{_known(parts, modules)}"
            )
        self._check_count(names, role)
        written = "".join(f".{key}" for key in keys) + match["steps"]
        steps = (*keys, *re.findall(r"\w+", match["steps"]))
        return {name + written: TapTarget(modules[name], name, steps) for name in names}

    def _check_count(self, names: list[str], role: str) -> None:
        listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        if self.is_pattern and self.count is None:
            raise UsageError(
                f"tap '{self.path}' is a pattern, so its count must be given. It matches {len(names)} in the {role}: "
                f"{listed}. If these are the ones, add count: {len(names)}"
            )
        if len(names) != (self.count or 1):
            raise UsageError(
                f"tap '{self.path}' must match {self.count or 1}, but matches {len(names)} in the {role}: {listed}"
            )


@dataclass(frozen=True)
class TapTarget:
    """One module to listen to and the steps into its output."""

    module: nn.Module
    module_path: str
    steps: tuple[str, ...]


class Taps:
    """Records what the tapped modules return while the context is open.

    Tensors are cloned when captured, so that a later in-place operation cannot change them; with `detach` (for the
    teacher) they leave the graph. Every firing is kept, in order, but for those of a backward pass: activation
    checkpointing runs a forward again there, and that is no new output.

    Copies (`copy.deepcopy`, `pickle`) of taps are closed, empty and belong to the copied model. A model that is copied
    while taps are open takes no listener along. Paths go through DistributedDataParallel's `.module`.
    """

    _handles: list[RemovableHandle]
    _record: dict[str, list[_Capture]]
    _wants_gradient: bool

    def __init__(
        self,
        model: nn.Module,
        paths: Iterable[str | Mapping[str, Any] | TapPath],
        *,
        detach: bool,
        role: str = "model",
    ) -> None:
        """Taps on a model; `role` is what messages call it.

        Raises:
            UsageError: a path is malformed, names no module, or matches another number of modules than it says.
        """
        self._model = model
        self._paths = tuple(dict.fromkeys(TapPath.parse(path) for path in paths))
        self._detach = detach
        self.role = role
        self._close()
        self._resolve()

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The taps of each path as it was written: itself, or what its pattern matches."""
        modules = modules_by_path(self._model)
        return {path.path: tuple(path.resolve(modules, self.role)) for path in self._paths}

    def __enter__(self) -> Taps:
        if self._handles:
            raise UsageError("these taps are open already; leave their context first")
        # Resolved anew each time: a module may have been replaced since (SyncBatchNorm, quantisation).
        targets = self._resolve()
        self._record = {name: [] for name in targets}
        self._wants_gradient = not self._detach and torch.is_grad_enabled()
        for name, target in targets.items():
            self._handles.append(target.module.register_forward_hook(_Listener(self, name, target)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if error is not None:
            self._record = {}

    def firings(self) -> dict[str, list[Tensor]]:
        """Everything that was captured, by tap and in order, handed over once: the record is empty afterwards.

        Raises:
            UsageError: a capture of the student (`detach=False`, gradients on) carries no gradient.
        """
        record, self._record = self._record, {}
        if self._wants_gradient:
            for name, captured in record.items():
                for capture in captured:
                    _check_gradient(f"tap '{name}' of the {self.role}", capture)
        return {name: [capture.tensor for capture in captured] for name, captured in record.items()}

    def take(self) -> dict[str, Tensor]:
        """The captured tensors by tap, handed over once, where each forward pass fires each tap once.

        Raises:
            UsageError: a tap did not fire exactly once, or what `firings` raises.
        """
        firings = self.firings()
        for name, fired in firings.items():
            if len(fired) != 1:
                raise UsageError(
                    f"tap '{name}' of the {self.role} fired {len(fired)} times in one forward pass, expected once"
                    f"{self._hint(name)}"
                )
        return {name: fired[0] for name, fired in firings.items()}

    def record(self, name: str, tensor: Tensor) -> None:
        """Called by the hooks."""
        if not _in_backward():
            captured = tensor.detach().clone() if self._detach else tensor.clone()
            self._record[name].append(_Capture(captured, torch.is_grad_enabled()))

    def _resolve(self) -> dict[str, TapTarget]:
        modules = modules_by_path(self._model)
        return {name: target for path in self._paths for name, target in path.resolve(modules, self.role).items()}

    def _hint(self, name: str) -> str:
        module = self._resolve()[name].module
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return f": a {type(module).__name__} is never called itself; tap its members ({name}.*)"
        return ""

    def _close(self) -> None:
        self._handles = []
        self._record = {}
        self._wants_gradient = False

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_paths": self._paths, "_detach": self._detach, "role": self.role}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close()


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Every module below the model by its dotted path, as if nothing were wrapped."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        path = ".".join(part for part in name.split(".") if part != _WRAPPER_PART)
        if path:
            found.setdefault(path, module)  # of a wrapper and what it wraps the wrapper: it runs once
    return found


@dataclass(frozen=True)
class _Capture:
    tensor: Tensor
    grad_enabled: bool


class _Listener:
    """The forward hook of one tap. Copied or pickled with its module it turns into one that does nothing."""

    def __init__(self, taps: Taps, name: str, target: TapTarget) -> None:
        self.taps, self.name = taps, name
        self.where = f"tap '{name}' of the {taps.role}"
        self.module_path, self.steps = target.module_path, target.steps

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for step in self.steps:
            output = _step_into(output, step, self._where(step, module))
        if isinstance(output, (list, tuple)) and len(output) == 1:  # mmdet3d's necks return a list of their one map
            (output,) = output
        if not isinstance(output, Tensor):
            more = "" if output is None else f": add a step such as {self.name}[0]"
            raise UsageError(f"{self.where} gives {_describe(output)}, not a tensor{more}")
        self.taps.record(self.name, output)

    def _where(self, step: str, module: nn.Module) -> str:
        children = [name for name, _ in module.named_children()]
        return f"{self.where}: '{self.module_path}' has no module '{step}'.{did_you_mean(step, children)}"

    def __reduce__(self) -> tuple[type[_NoListener], tuple[()]]:
        return _NoListener, ()


class _NoListener:
    """What is left of a listener in a copied model."""

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Do nothing."""


def _step_into(output: Any, step: str, where: str) -> Any:
    """One item, entry or attribute of a nested output."""
    if isinstance(output, Mapping):
        for key in (step, int(step)) if step.isdecimal() else (step,):
            if key in output:
                return output[key]
    elif isinstance(output, (list, tuple)):
        if step.isdecimal() and int(step) < len(output):
            return output[int(step)]
        if not step.isdecimal() and step in getattr(output, "_fields", ()):  # a named tuple
            return getattr(output, step)
        if not step.isdecimal() and len(output) == 1:
            return _step_into(output[0], step, where)
    elif not isinstance(output, Tensor) and hasattr(output, step):
        return getattr(output, step)
    known = did_you_mean(step, [str(key) for key in output]) if isinstance(output, Mapping) else ""
    raise UsageError(f"{where} [{step}] does not fit an output of {_describe(output)} either.{known}")


def _check_gradient(where: str, capture: _Capture) -> None:
    if capture.tensor.requires_grad:
        return
    if capture.grad_enabled:
        raise UsageError(
            f"{where} carries no gradient: nothing up to it can be trained, so a loss on it teaches nothing"
        )
    raise UsageError(
        f"{where} carries no gradient: its module ran with gradients off, as activation checkpointing with "
        "use_reentrant=True does it. Use use_reentrant=False, or tap outside the checkpointed part"
    )


def _in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread; checkpointing recomputes forwards there."""
    return torch._C._current_graph_task_id() != -1


def _fits(name: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a module's name fit the parts of a pattern."""
    if not pattern or not name:
        return not pattern and not name
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return not rest or _fits(name, rest) or _fits(name[1:], pattern)
    return fnmatchcase(name[0], first) and _fits(name[1:], rest)


def _has_glob(text: str) -> bool:
    return "*" in text or "?" in text


def _known(parts: list[str], modules: Mapping[str, nn.Module]) -> str:
    """Hint for a path that fits nothing."""
    hint = did_you_mean(".".join(parts), modules)
    return hint or f" It has: {', '.join(name for name in modules if '.' not in name)}"


def _describe(output: Any) -> str:
    if output is None:
        return "None"
    if isinstance(output, Mapping):
        return f"a dict with keys {list(output)}"
    if isinstance(output, (list, tuple)):
        return f"a {type(output).__name__} of length {len(output)}"
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    return f"a {type(output).__name__}"
