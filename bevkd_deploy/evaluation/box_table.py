"""Boxes as columns: what matching and metrics work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Every attribute that a record may name; '' stands for none.
#: Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/constants.py.
ATTRIBUTE_NAMES: tuple[str, ...] = (
    "",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)


@dataclass(frozen=True)
class BoxTable:
    """n boxes, grouped by sample and in record order within each.

    Attributes:
        tokens: the samples.
        sample: [n] index into `tokens`, ascending.
        label: [n] index into `CLASS_NAMES`.
        translation_m: [n, 3] centre, global frame.
        size_m: [n, 3] width, length, height.
        yaw_rad: [n] heading of the length axis, global frame.
        velocity_mps: [n, 2] global frame; NaN where unknown.
        score: [n] confidence, zero or more; zeros for ground truth.
        attribute: [n] index into `ATTRIBUTE_NAMES`.
        num_pts: [n] points inside the box, or None if the records do not carry it.
        ego_distance_m: [n] distance from the ego vehicle in the ground plane, or None if the records do not carry it.
    """

    tokens: tuple[str, ...]
    sample: Indices
    label: Indices
    translation_m: Array
    size_m: Array
    yaw_rad: Array
    velocity_mps: Array
    score: Array
    attribute: Indices
    num_pts: Indices | None
    ego_distance_m: Array | None

    def __len__(self) -> int:
        return len(self.sample)

    def select(self, rows: Indices) -> BoxTable:
        """The boxes at the given rows, in that order."""
        return replace(self, **{name: column[rows] for name, column in self._columns().items()})

    def of_samples(self, tokens: Sequence[str]) -> BoxTable:
        """The boxes of some samples, in that order of samples and in record order within each.

        Raises:
            KeyError: a sample is not in the table.
        """
        if tuple(tokens) == self.tokens:
            return self
        place = {token: index for index, token in enumerate(self.tokens)}
        sources = np.array([place[token] for token in tokens], dtype=np.int64)
        first = np.searchsorted(self.sample, np.arange(len(self.tokens) + 1))
        counts = np.diff(first)[sources]
        ends = np.cumsum(counts)
        rows = np.arange(int(counts.sum())) - np.repeat(ends - counts - first[sources], counts)
        return replace(self.select(rows), tokens=tuple(tokens), sample=np.repeat(np.arange(len(tokens)), counts))

    def _columns(self) -> dict[str, Any]:
        """The arrays that the table holds, by attribute."""
        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tokens"}
        return {name: column for name, column in columns.items() if column is not None}


def concatenate(tables: Sequence[BoxTable]) -> BoxTable:
    """One table of the boxes and samples of one or more, in order; all hold the same optional columns."""
    columns = {name: np.concatenate([getattr(table, name) for table in tables]) for name in tables[0]._columns()}
    first_sample = np.cumsum([0, *(len(table.tokens) for table in tables[:-1])])
    columns["sample"] += np.repeat(first_sample, [len(table) for table in tables])
    tokens = tuple(token for table in tables for token in table.tokens)
    return replace(tables[0], tokens=tokens, **columns)
