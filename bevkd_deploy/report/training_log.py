"""`events.jsonl` → loss curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import ArtifactError

#: Name of the sum of all terms.
TOTAL = "total"

Series = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True)
class Curves:
    """Losses of one stage: name → (steps, values)."""

    stage: str
    series: dict[str, Series] = field(default_factory=dict)


def read_curves(path: Path | str) -> list[Curves]:
    """Collect the losses that a run logged, by stage and in file order.

    An event counts when it has an integer `step` and a `losses` object; its stage is `stage`, or "training". The sum
    of the terms is added as "total". A last line cut short by a killed run is left out.

    Raises:
        ArtifactError: the file is missing or a line other than the last is not JSON.
    """
    collected: dict[str, dict[str, dict[int, float]]] = {}
    for event in _events(Path(path)):
        step = event.get("step")
        if not isinstance(step, int):
            continue
        stage = collected.setdefault(str(event.get("stage", "training")), {})
        for name, value in _losses(event):
            # A resumed run logs some steps again; the later value is the one that counted.
            stage.setdefault(name, {})[step] = value
    return [
        Curves(stage, {name: _series(points) for name, points in losses.items()})
        for stage, losses in collected.items()
        if losses
    ]


def _events(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise ArtifactError(f"event log not found: {path}")
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise ArtifactError(f"{path}, line {number} is not JSON: {error}") from error
        if isinstance(event, dict):
            yield event


def _losses(event: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    losses = event.get("losses")
    if not isinstance(losses, Mapping):
        return
    terms = {
        str(name).removesuffix("_loss"): float(value)
        for name, value in losses.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    yield from terms.items()
    if terms and TOTAL not in terms:
        yield TOTAL, sum(terms.values())


def _series(points: Mapping[int, float]) -> Series:
    steps = sorted(points)
    return np.array(steps, dtype=np.int64), np.array([points[step] for step in steps], dtype=np.float64)
