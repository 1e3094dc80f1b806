"""Losses in at least single precision, whatever autocast and the networks' dtype are."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function on tensors with autocast off and floating-point arguments of one dtype, float32 or wider.

    Squares, Gram matrices and exp(1 / 0.07) leave the range of float16 (65504). Tensors may also stand in lists;
    integers and masks pass as they are; float64 stays float64.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = _floating((*args, *kwargs.values()))
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device, enabled=False):
            return function(
                *(_cast(value, dtype) for value in args),
                **{name: _cast(value, dtype) for name, value in kwargs.items()},
            )

    return run


def _floating(values: tuple[Any, ...] | list[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_floating(value))
    return found


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        items = [_cast(item, dtype) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value
