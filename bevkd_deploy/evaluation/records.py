"""Submission records to columns: the border where every record is checked, once."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import chain
from numbers import Real
from operator import itemgetter
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.evaluation.box_table import ATTRIBUTE_NAMES, Array, BoxTable, Indices, concatenate

Record = Mapping[str, Any]
Records = Mapping[str, Sequence[Record]]

_VECTORS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2, "ego_translation": 3}
_OPTIONAL_FIELDS = ("ego_translation", "num_pts")
_SHORTEST_QUATERNION = 1e-6
_RECORDS_PER_CHUNK = 2000  # their fields are read one after another, which is twice as fast while they are in cache


class Kind(Enum):
    """Which side of the comparison records are; the value names it in messages."""

    RESULTS = "results"
    GROUND_TRUTH = "ground truth"


def read_boxes(records: Records, kind: Kind, tokens: Sequence[str] | None = None, origin: str = "") -> BoxTable:
    """Check submission records and turn them into columns.

    Args:
        records: sample token -> records with sample_token, translation, size (w, l, h), rotation (w, x, y, z),
            velocity, detection_name, attribute_name, for results detection_score, and optionally ego_translation and
            num_pts (all records or none).
        kind: results or ground truth; only ground truth may leave a velocity unknown (NaN or null).
        tokens: order of the samples; by default that of `records`.
        origin: the file that the records came from, for messages.

    Raises:
        DataError: a record is malformed; the message names its sample token and its index there.
    """
    tokens = tuple(records if tokens is None else tokens)
    source = f"{kind.value} {origin}".rstrip()
    for token in tokens:
        if not isinstance(records[token], (list, tuple)):
            got = type(records[token]).__name__
            raise DataError(f"{source}: sample {token!r} must hold a list of records, got {got}")
    first = next((record for token in tokens for record in records[token]), None)
    carried = {field for field in _OPTIONAL_FIELDS if first is None or (isinstance(first, Mapping) and field in first)}
    return concatenate(
        [_read_chunk(_RecordReader(records, chunk, kind, source), carried) for chunk in _chunks(records, tokens)]
    )


def _chunks(records: Records, tokens: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Runs of samples with about `_RECORDS_PER_CHUNK` records each; at least one run, if an empty one."""
    start = count = 0
    for stop, token in enumerate(tokens, start=1):
        count += len(records[token])
        if count >= _RECORDS_PER_CHUNK or stop == len(tokens):
            yield tokens[start:stop]
            start, count = stop, 0
    if not tokens:
        yield ()


def _read_chunk(reader: _RecordReader, carried: set[str]) -> BoxTable:
    reader.read_vectors(
        {name: width for name, width in _VECTORS.items() if name != "ego_translation" or name in carried}
    )
    reader.check_tokens()
    reader.refuse_fields([field for field in _OPTIONAL_FIELDS if field not in carried])
    rotation = reader.finite("rotation", 4)
    reader.refuse_where(
        np.linalg.norm(rotation, axis=1) < _SHORTEST_QUATERNION,
        "rotation must be a quaternion (w, x, y, z) of length one, got",
        rotation,
    )
    size_m = reader.finite("size", 3)
    reader.refuse_where((size_m <= 0).any(axis=1), "size (w, l, h) must be positive metres, got", size_m)
    return BoxTable(
        tokens=reader.tokens,
        sample=np.repeat(np.arange(len(reader.tokens)), np.diff(reader.offsets)),
        label=reader.choices("detection_name", CLASS_NAMES),
        translation_m=reader.finite("translation", 3),
        size_m=size_m,
        yaw_rad=_yaw(rotation),
        velocity_mps=reader.velocity(),
        score=reader.score(),
        attribute=reader.choices("attribute_name", ATTRIBUTE_NAMES),
        num_pts=reader.num_pts() if "num_pts" in carried else None,
        ego_distance_m=reader.ego_distance() if "ego_translation" in carried else None,
    )


def _yaw(rotation: Array) -> Array:
    """Heading of the rotated x axis [n] in radians, of quaternions [n, 4] (w, x, y, z) of any positive length."""
    w, x, y, z = (rotation / np.linalg.norm(rotation, axis=1, keepdims=True)).T
    yaw_rad: Array = np.arctan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
    return yaw_rad


def _as_numbers(values: list[Any]) -> Array | None:
    """Numbers as an array, or None if one is missing, is no number or is too large for a float."""
    try:
        # Unlike NumPy, `array` takes neither text nor null for a number.
        return np.frombuffer(array("d", values), dtype=np.float64)
    except (TypeError, OverflowError):
        return None


class _RecordReader:
    """Reads one field of all records at a time; an array operation finds a bad value, a message says where it is."""

    def __init__(self, records: Records, tokens: tuple[str, ...], kind: Kind, source: str) -> None:
        self.tokens = tokens
        self.kind = kind
        self.source = source
        self.flat = [record for token in tokens for record in records[token]]
        self.vectors: dict[str, Array] = {}
        self.offsets = np.cumsum([0, *(len(records[token]) for token in tokens)])
        if not set(map(type, self.flat)) <= {dict}:
            for index, record in enumerate(self.flat):
                if not isinstance(record, Mapping):
                    self.refuse(index, f"a record must be an object, got {type(record).__name__}")

    def refuse(self, index: int, message: str) -> NoReturn:
        """Raise for record `index` of the flat list."""
        sample = int(np.searchsorted(self.offsets, index, side="right")) - 1
        where = f"sample {self.tokens[sample]!r}, record {index - int(self.offsets[sample])}"
        raise DataError(f"{self.source}: {where}: {message}")

    def refuse_where(self, bad: ArrayLike, message: str, values: NDArray[Any]) -> None:
        """Raise for the first record marked in `bad` [n]."""
        if np.any(bad):
            first = int(np.argmax(bad))
            self.refuse(first, f"{message} {values[first].tolist()}")

    def check_tokens(self) -> None:
        """Each record must name the sample it is listed under: matching goes by that sample."""
        named = self._values("sample_token")
        offsets = self.offsets.tolist()
        for token, start, end in zip(self.tokens, offsets[:-1], offsets[1:], strict=True):
            if named[start:end].count(token) == end - start:
                continue
            index = next(index for index in range(start, end) if named[index] != token)
            self.refuse(index, f"sample_token must be {token!r}, the sample it is under, got {named[index]!r}")

    def read_vectors(self, widths: Mapping[str, int]) -> None:
        """Keep well-formed vectors, read in one go; a malformed one leaves out all that were asked for with it."""
        try:
            vectors = [record[name] for record in self.flat for name in widths]
            if list(map(len, vectors)) != list(widths.values()) * len(self.flat):
                return
        except (KeyError, TypeError):
            return
        numbers = _as_numbers(list(chain.from_iterable(vectors))) if vectors else None
        if numbers is not None:
            ends = np.cumsum(list(widths.values()))
            columns = np.split(numbers.reshape(len(self.flat), -1), ends[:-1], axis=1)
            self.vectors.update(zip(widths, columns, strict=True))

    def finite(self, field: str, width: int) -> Array:
        """A field of `width` finite numbers, [n, width]."""
        values = self._numbers(field, width)
        self.refuse_where(~np.isfinite(values).all(axis=1), f"{field} must be finite, got", values)
        return values

    def velocity(self) -> Array:
        """Velocity [n, 2]; NaN is how nuScenes marks an object seen once, so ground truth may hold it."""
        velocity = self._numbers("velocity", 2)
        bad = np.isinf(velocity) if self.kind is Kind.GROUND_TRUTH else ~np.isfinite(velocity)
        self.refuse_where(bad.any(axis=1), "velocity must be finite, got", velocity)
        return velocity

    def score(self) -> Array:
        """Confidence [n]."""
        if self.kind is Kind.GROUND_TRUTH:
            return np.zeros(len(self.flat))
        score = self._numbers("detection_score", 0)
        self.refuse_where(~np.isfinite(score), "detection_score must be finite, got", score)
        # Recall that is never reached is marked by confidence 0, so nothing may rank below it.
        self.refuse_where(score < 0, "detection_score must be zero or more, got", score)
        return score

    def num_pts(self) -> Indices:
        """Points per box [n]."""
        counts = self._numbers("num_pts", 0)
        whole = np.isfinite(counts) & (counts == np.floor(counts))
        self.refuse_where(~whole, "num_pts must be a whole number, got", counts)
        return counts.astype(np.int64)

    def ego_distance(self) -> Array:
        """Distance from the ego vehicle [n]."""
        ego_xy_m = self.finite("ego_translation", 3)[:, :2]
        distance_m: Array = np.sqrt(np.sum(ego_xy_m**2, axis=1))
        return distance_m

    def refuse_fields(self, fields: list[str]) -> None:
        """Refuse optional fields that the first record lacks: a filter over half the records would mislead."""
        for field in fields:
            for index, record in enumerate(self.flat):
                if field in record:
                    self.refuse(index, f"has {field}, but the first record has not; give it to all records or to none")

    def choices(self, field: str, names: tuple[str, ...]) -> Indices:
        """Index into `names` of a text field, [n]."""
        lookup = {name: index for index, name in enumerate(names)}
        values = self._values(field)
        try:
            return np.fromiter(map(lookup.__getitem__, values), dtype=np.int64, count=len(values))
        except (KeyError, TypeError):
            first = next(index for index, value in enumerate(values) if value not in names)
            self.refuse(first, f"unknown {field} {values[first]!r}; it must be one of {list(names)}")

    def _values(self, field: str) -> list[Any]:
        try:
            return list(map(itemgetter(field), self.flat))
        except KeyError:
            first = next(index for index, record in enumerate(self.flat) if field not in record)
            hint = ", but the first record has it; give it to all records or to none"
            self.refuse(first, f"no {field}{hint if field in _OPTIONAL_FIELDS else ''}")

    def _numbers(self, field: str, width: int) -> Array:
        """A field of `width` numbers as [n, width], or of one number as [n] where width is 0; null becomes NaN."""
        if width and field not in self.vectors:
            self.read_vectors({field: width})
        if field in self.vectors:
            return self.vectors[field]
        values = self._values(field)
        shape = (len(values), width) if width else (len(values),)
        numbers = None if width or not values else _as_numbers(values)
        if numbers is not None:
            return numbers
        rows = [self._number_row(index, field, width, value) for index, value in enumerate(values)]
        return np.array(rows, dtype=np.float64).reshape(shape)

    def _number_row(self, index: int, field: str, width: int, value: Any) -> list[float]:
        """One record's field as a list of numbers; the slow way, for data that do not form an array at once."""
        expected = f"{width} numbers" if width else "a number"
        items = value if width else [value]
        if not isinstance(items, (list, tuple, np.ndarray)) or len(items) != max(width, 1):
            self.refuse(index, f"{field} must be {expected}, got {value!r}")
        row = []
        for item in items:
            if item is not None and not isinstance(item, Real):
                self.refuse(index, f"{field} must be {expected}, got {value!r}")
            try:
                row.append(np.nan if item is None else float(item))
            except OverflowError:
                self.refuse(index, f"{field} must be {expected}, got one too large for a float")
        return row
