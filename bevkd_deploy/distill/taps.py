"""Capturing intermediate tensors by dotted path, without leaving anything behind.

A tap is `path` or `path[selector]...`: the dotted name of a module, then integers or keys into a nested output, as in
`pts_neck`, `pts_backbone[1]` or `bbox_head[heatmap]`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from bevkd_deploy.contracts.errors import UsageError

_TAP = re.compile(r"^(?P<module>[\w.]+)(?P<selectors>(\[\w+\])*)$")


class Taps:
    """Records what the tapped modules return while the context is open.

    Tensors are cloned when captured, so that a later in-place operation cannot change them; with `detach` (for the
    teacher) they leave the graph. Each forward must fire each tap exactly once.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], *, detach: bool) -> None:
        self._targets = {path: _resolve(model, path) for path in dict.fromkeys(paths)}
        self._detach = detach
        self._handles: list[Any] = []
        self._captured: dict[str, list[Tensor]] = {}

    def __enter__(self) -> Taps:
        self._captured = {path: [] for path in self._targets}
        for path, (module, selectors) in self._targets.items():
            self._handles.append(module.register_forward_hook(_Capture(self, path, selectors)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if error is not None:
            self._captured.clear()

    def take(self) -> dict[str, Tensor]:
        """The captured tensors by tap, handed over once.

        Raises:
            UsageError: a tap did not fire exactly once.
        """
        for path, fired in self._captured.items():
            if len(fired) != 1:
                raise UsageError(f"tap '{path}' fired {len(fired)} times in one forward pass, expected once")
        captured = {path: fired[0] for path, fired in self._captured.items()}
        self._captured = {}
        return captured

    def record(self, path: str, tensor: Tensor) -> None:
        """Called by the hooks."""
        self._captured[path].append(tensor.detach().clone() if self._detach else tensor.clone())


class _Capture:
    """A picklable forward hook."""

    def __init__(self, owner: Taps, path: str, selectors: list[str]) -> None:
        self.owner, self.path, self.selectors = owner, path, selectors

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.owner.record(self.path, _select(output, self.selectors, self.path))


def _resolve(model: nn.Module, path: str) -> tuple[nn.Module, list[str]]:
    match = _TAP.match(path)
    if match is None:
        raise UsageError(f"tap '{path}' is malformed; write a dotted module path, then [selectors]: pts_backbone[1]")
    modules = dict(model.named_modules())
    name = match["module"]
    if name not in modules:
        close = difflib.get_close_matches(name, list(modules), n=3) or [n for n, _ in model.named_children()]
        raise UsageError(f"tap '{path}': the model has no module '{name}'. Did you mean one of {close}?")
    return modules[name], re.findall(r"\[(\w+)\]", match["selectors"])


def _select(output: Any, selectors: list[str], path: str) -> Tensor:
    for selector in selectors:
        try:
            output = output[selector] if isinstance(output, dict) else output[int(selector)]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise UsageError(f"tap '{path}': [{selector}] does not fit an output of {_describe(output)}") from error
    if not isinstance(output, Tensor):
        raise UsageError(f"tap '{path}' gives {_describe(output)}, not a tensor: add a selector such as {path}[0]")
    return output


def _describe(output: Any) -> str:
    if isinstance(output, dict):
        return f"a dict with keys {list(output)}"
    if isinstance(output, (list, tuple)):
        return f"a {type(output).__name__} of length {len(output)}"
    return f"a {type(output).__name__}"
