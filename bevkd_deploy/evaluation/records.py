"""Submission records to columns: the border where every record is checked, once."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from bevkd_deploy.evaluation.packing import pack

Record = Mapping[str, Any]
Records = Mapping[str, Sequence[Record]]

#: Fields of floats and how many each holds, 0 for a bare number.
WIDTHS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2, "ego_translation": 3, "detection_score": 0}
OPTIONAL_FIELDS = ("ego_translation", "num_pts")
#: Fields are read one after another, which is twice as fast while the records are in cache.
RECORDS_PER_CHUNK = 2000

_SHORTEST_QUATERNION = 1e-6


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
        require_list(records[token], token, source)
    carried = carried_fields(next((record for token in tokens for record in records[token]), None))
    return concatenate(
        [
            read_chunk(RecordReader(chunk, [records[token] for token in chunk], kind, source), carried)
            for chunk in _chunks(records, tokens)
        ]
    )


def require_list(listed: Any, token: str, source: str) -> None:
    """Refuse a sample that holds no list."""
    if not isinstance(listed, (list, tuple)):
        raise DataError(f"{source}: sample {token!r} must hold a list of records, got {type(listed).__name__}")


def carried_fields(first: Any) -> frozenset[str]:
    """Optional fields that all records must have, because the first one has them; all fields where there is none."""
    return frozenset(
        field for field in OPTIONAL_FIELDS if first is None or (isinstance(first, Mapping) and field in first)
    )


def _chunks(records: Records, tokens: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Runs of samples with about `RECORDS_PER_CHUNK` records each; at least one run, if an empty one."""
    start = count = 0
    for stop, token in enumerate(tokens, start=1):
        count += len(records[token])
        if count >= RECORDS_PER_CHUNK or stop == len(tokens):
            yield tokens[start:stop]
            start, count = stop, 0
    if not tokens:
        yield ()


def read_chunk(reader: RecordReader, carried: frozenset[str]) -> BoxTable:
    """Columns of the records of one reader."""
    for names in reader.number_fields(carried):
        reader.read_numbers({name: WIDTHS[name] for name in names})
    reader.check_tokens()
    reader.refuse_fields([field for field in OPTIONAL_FIELDS if field not in carried])
    rotation = reader.finite("rotation")
    length = np.sqrt(sum(rotation[:, index] ** 2 for index in range(4)))
    reader.refuse_where(
        length < _SHORTEST_QUATERNION, "rotation must be a quaternion (w, x, y, z) of length one, got", rotation
    )
    size_m = reader.finite("size")
    if not (size_m > 0).all():
        reader.refuse_where((size_m <= 0).any(axis=1), "size (w, l, h) must be positive metres, got", size_m)
    return BoxTable(
        tokens=reader.tokens,
        sample=np.repeat(np.arange(len(reader.tokens)), np.diff(reader.offsets)),
        label=reader.choices("detection_name", CLASS_NAMES),
        translation_m=reader.finite("translation"),
        size_m=size_m,
        yaw_rad=_yaw(rotation / length[:, None]),
        velocity_mps=reader.velocity(),
        score=reader.score(),
        attribute=reader.choices("attribute_name", ATTRIBUTE_NAMES),
        num_pts=reader.num_pts() if "num_pts" in carried else None,
        ego_distance_m=reader.ego_distance() if "ego_translation" in carried else None,
    )


def _yaw(rotation: Array) -> Array:
    """Heading of the rotated x axis [n] in radians, of unit quaternions [n, 4] (w, x, y, z)."""
    w, x, y, z = rotation.T
    yaw_rad: Array = np.arctan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
    return yaw_rad


def _as_numbers(values: list[Any], width: int) -> Array | None:
    """Numbers, or vectors of `width`, as a flat array; None if one is malformed or too large for a float."""
    try:
        if width:
            if not set(map(type, values)) <= {list, tuple} or set(map(len, values)) != {width}:
                return None
            values = list(chain.from_iterable(values))
        values = [math.nan if value is None else value for value in values]
        # Unlike NumPy, `array` takes no text for a number.
        return np.frombuffer(array("d", values), dtype=np.float64)
    except (TypeError, OverflowError):
        return None


class RecordReader:
    """Reads one field of all records at a time; an array operation finds a bad value, a message says where it is.

    Args:
        tokens: the samples.
        lists: the records of each.
        kind: results or ground truth.
        source: what the records came from, for messages.
        getter: makes a function that reads one or more named fields of a record.
    """

    def __init__(
        self,
        tokens: tuple[str, ...],
        lists: Sequence[Sequence[Any]],
        kind: Kind,
        source: str,
        getter: Callable[..., Callable[[Any], Any]] = itemgetter,
    ) -> None:
        self.tokens = tokens
        self.kind = kind
        self.source = source
        self.getter = getter
        self.flat = list(chain.from_iterable(lists))
        self.numbers: dict[str, Array] = {}
        self.offsets = np.cumsum([0, *map(len, lists)])
        if getter is itemgetter and not set(map(type, self.flat)) <= {dict}:
            for index, record in enumerate(self.flat):
                if not isinstance(record, Mapping):
                    self.refuse(index, f"a record must be an object, got {type(record).__name__}")

    def number_fields(self, carried: frozenset[str]) -> list[list[str]]:
        """Fields of `WIDTHS` in these records; apart, velocity that may be null, which must not hold up the others."""
        known = [name for name in WIDTHS if name in carried or name not in OPTIONAL_FIELDS]
        if self.kind is Kind.RESULTS:
            return [known]
        return [[name for name in known if name not in ("velocity", "detection_score")], ["velocity"]]

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

    def read_numbers(self, widths: Mapping[str, int]) -> None:
        """Keep the given fields of all records, if every one is made of floats; otherwise each is read when needed."""
        try:
            get = self.getter(*widths)
            rows = list(map(get, self.flat)) if len(widths) > 1 else [(value,) for value in map(get, self.flat)]
        except (KeyError, AttributeError):
            return
        columns = pack(rows, list(widths.values()))
        if columns is not None:
            self.numbers.update(zip(widths, columns, strict=True))

    def finite(self, field: str) -> Array:
        """A field of finite numbers, [n, width]."""
        values = self._numbers(field)
        if not np.isfinite(values).all():
            self.refuse_where(~np.isfinite(values).all(axis=1), f"{field} must be finite, got", values)
        return values

    def velocity(self) -> Array:
        """Velocity [n, 2]; NaN is how nuScenes marks an object seen once, so ground truth may hold it."""
        velocity = self._numbers("velocity")
        bad = np.isinf(velocity) if self.kind is Kind.GROUND_TRUTH else ~np.isfinite(velocity)
        if bad.any():
            self.refuse_where(bad.any(axis=1), "velocity must be finite, got", velocity)
        return velocity

    def score(self) -> Array:
        """Confidence [n]."""
        if self.kind is Kind.GROUND_TRUTH:
            return np.zeros(len(self.flat))
        score = self._numbers("detection_score")
        self.refuse_where(~np.isfinite(score), "detection_score must be finite, got", score)
        # Recall that is never reached is marked by confidence 0, so nothing may rank below it.
        self.refuse_where(score < 0, "detection_score must be zero or more, got", score)
        return score

    def num_pts(self) -> Indices:
        """Points per box [n]."""
        counts = self._numbers("num_pts")
        whole = np.isfinite(counts) & (counts == np.floor(counts))
        self.refuse_where(~whole, "num_pts must be a whole number, got", counts)
        return counts.astype(np.int64)

    def ego_distance(self) -> Array:
        """Distance from the ego vehicle [n]."""
        x_m, y_m, _ = self.finite("ego_translation").T
        distance_m: Array = np.sqrt(x_m**2 + y_m**2)
        return distance_m

    def refuse_fields(self, fields: list[str]) -> None:
        """Refuse optional fields that the first record lacks: a filter over half the records would mislead."""
        if self.getter is not itemgetter:
            return  # typed records hold no field that they do not declare
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
            return list(map(self.getter(field), self.flat))
        except KeyError:
            first = next(index for index, record in enumerate(self.flat) if field not in record)
            hint = ", but the first record has it; give it to all records or to none"
            self.refuse(first, f"no {field}{hint if field in OPTIONAL_FIELDS else ''}")

    def _numbers(self, field: str) -> Array:
        """A field of numbers as [n, width], or of one number as [n]; null becomes NaN."""
        if field in self.numbers:
            return self.numbers[field]
        values = self._values(field)
        width = WIDTHS.get(field, 0)
        shape = (len(values), width) if width else (len(values),)
        numbers = _as_numbers(values, width) if values else None
        if numbers is None:
            rows = [self._number_row(index, field, width, value) for index, value in enumerate(values)]
            numbers = np.array(rows, dtype=np.float64)
        return numbers.reshape(shape)

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
