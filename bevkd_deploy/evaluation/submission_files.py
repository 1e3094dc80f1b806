"""Submission files straight to columns: samples are decoded one after another, and millions of boxes fit in memory."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.files import read_json
from bevkd_deploy.evaluation.box_table import BoxTable, concatenate
from bevkd_deploy.evaluation.racks import Racks
from bevkd_deploy.evaluation.records import (
    OPTIONAL_FIELDS,
    RECORDS_PER_CHUNK,
    WIDTHS,
    Kind,
    RecordReader,
    carried_fields,
    read_boxes,
    read_chunk,
    require_list,
)


@dataclass(frozen=True)
class Submission:
    """What a submission file holds.

    Attributes:
        boxes: the records of `results`.
        meta: the file's `meta`, empty where it has none.
        bike_racks: sample token -> racks, for ground truth; None where the file does not say.
    """

    boxes: BoxTable
    meta: Mapping[str, Any]
    bike_racks: Racks | None


_BYTES_PER_RECORD = 500
_BEFORE_VALUE = b"[,: \t\r\n"
_AFTER_VALUE = tuple(bytes([letter]) for letter in b",]} \t\r\n")


class _File(msgspec.Struct):
    results: dict[str, msgspec.Raw]
    meta: Any = None
    bike_racks: Any = None


def read_submission(path: Path | str, kind: Kind) -> Submission:
    """Read a results or ground-truth file and check every record.

    Args:
        path: the JSON file; NaN, which Python writes although JSON has none, is read as null.
        kind: results or ground truth; ground truth needs no score, and a velocity may be unknown (null or NaN).

    Raises:
        ArtifactError: there is no such file, or it is not JSON.
        DataError: it is no submission, or a record is malformed; the message names sample token and record index.
    """
    path = Path(path)
    data = path.read_bytes() if path.is_file() else b""
    content = _decode(data)
    if content is None and (data := _nan_to_null(data)):
        content = _decode(data)
    if content is None:  # broken, or JSON of another kind: the slower reader knows which
        return _read_generic(path, kind)
    boxes = _read_samples(content.results, kind, f"{kind.value} {path}")
    return Submission(boxes, *_extras(content.meta, content.bike_racks, kind, path))


def results_of(content: Any, kind: Kind, path: Path | str) -> dict[str, Any]:
    """The samples of a parsed submission file.

    Raises:
        DataError: it is no submission.
    """
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise DataError(
            f"{kind.value} {path}: not a nuScenes submission; it needs "
            '{"meta": {...}, "results": {sample_token: [record, ...]}}'
        )
    return results


def _read_generic(path: Path, kind: Kind) -> Submission:
    content = read_json(path, kind.value)
    boxes = read_boxes(results_of(content, kind, path), kind, origin=str(path))
    return Submission(boxes, *_extras(content.get("meta"), content.get("bike_racks"), kind, path))


def _extras(meta: Any, racks: Any, kind: Kind, path: Path) -> tuple[Mapping[str, Any], Racks | None]:
    if racks is not None and not (isinstance(racks, dict) and all(isinstance(found, list) for found in racks.values())):
        raise DataError(f"{kind.value} {path}: bike_racks must map sample tokens to lists of racks")
    return meta if isinstance(meta, dict) else {}, racks


def _decode(data: bytes) -> _File | None:
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _nan_to_null(data: bytes) -> bytes:
    """The text with null for each NaN that stands where a value does.

    Only a sample token or name that holds ", NaN," itself would change with it, and then be refused as unknown.
    """
    view, pieces, start = memoryview(data), [], 0
    position = data.find(b"N")  # one letter, a rare one, is found many times faster than three
    while position >= 0:
        end = position + 3
        if data[position:end] == b"NaN" and data[position - 1] in _BEFORE_VALUE and data[end : end + 1] in _AFTER_VALUE:
            pieces += [view[start:position], memoryview(b"null")]
            start = end
        position = data.find(b"N", position + 1)
    return b"".join([*pieces, view[start:]]) if pieces else b""


def _read_samples(samples: dict[str, msgspec.Raw], kind: Kind, source: str) -> BoxTable:
    """Columns of undecoded samples."""
    carried = carried_fields(_first_record(samples))
    decoder = _decoder(kind, carried)
    return concatenate([_read_chunk(chunk, decoder, kind, source, carried) for chunk in _chunks(samples)])


def _first_record(samples: dict[str, msgspec.Raw]) -> Any:
    for raw in samples.values():
        listed = _plain(raw) if len(memoryview(raw)) > len("[]") else None
        if listed and isinstance(listed, list):
            return listed[0]
    return None


def _chunks(samples: dict[str, msgspec.Raw]) -> Iterator[dict[str, msgspec.Raw]]:
    """Runs of samples with about `RECORDS_PER_CHUNK` records each; at least one run, if an empty one."""
    chunk: dict[str, msgspec.Raw] = {}
    size = 0
    for token, raw in samples.items():
        chunk[token] = raw
        size += len(memoryview(raw))
        if size >= RECORDS_PER_CHUNK * _BYTES_PER_RECORD:
            yield chunk
            chunk, size = {}, 0
    if chunk or not samples:
        yield chunk


def _read_chunk(
    samples: dict[str, msgspec.Raw], decoder: Any, kind: Kind, source: str, carried: frozenset[str]
) -> BoxTable:
    tokens = tuple(samples)
    try:
        typed = [decoder.decode(raw) for raw in samples.values()]
        return read_chunk(RecordReader(tokens, typed, kind, source, attrgetter), carried)
    except (msgspec.MsgspecError, UnicodeDecodeError, DataError):
        # Something is unusual. The reader of plain records accepts it, or names sample, record and field.
        lists = [_plain(raw) for raw in samples.values()]
        for token, listed in zip(tokens, lists, strict=True):
            require_list(listed, token, source)
        return read_chunk(RecordReader(tokens, lists, kind, source), carried)


def _plain(raw: msgspec.Raw) -> Any:
    return json.loads(bytes(raw))


def _decoder(kind: Kind, carried: frozenset[str]) -> Any:
    """Decoder of one sample's records; a field that no record may have decodes to an error."""
    numbers = {
        field: (types.GenericAlias(tuple, (float,) * width) if width else float) for field, width in WIDTHS.items()
    }
    fields: dict[str, Any] = {"sample_token": str, "detection_name": str, "attribute_name": str, **numbers}
    fields["num_pts"] = int
    if kind is Kind.GROUND_TRUTH:
        del fields["detection_score"]
        fields["velocity"] = tuple[float | None, float | None]
    absent = [field for field in OPTIONAL_FIELDS if field not in carried]
    required = [(field, type_) for field, type_ in fields.items() if field not in absent]
    refused = [(field, msgspec.UnsetType, msgspec.UNSET) for field in absent]
    record = msgspec.defstruct("Record", [*required, *refused], gc=False)
    return msgspec.json.Decoder(list[record])  # type: ignore[valid-type]
