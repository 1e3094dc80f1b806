"""Rows of a nuScenes table, one at a time: gigabytes of JSON are never in memory at once."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from array import array
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from bevkd_deploy.contracts.errors import DataError

Row = dict[str, Any]

#: Told of each problem of a table: its kind ("table", "token", ...) and what is wrong. It may raise.
Report = Callable[[str, str], None]

_CHUNK_BYTES = 1 << 22
_LONGEST_ROW = 1 << 26
_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=\{)")


def fail(kind: str, problem: str) -> NoReturn:
    """The report of readers that stop at the first problem.

    Raises:
        DataError: always.
    """
    raise DataError(problem)


class TableRows:
    """Iterates over the rows of one table that are sound, and reports the others.

    Args:
        path: JSON file, a list of objects.
        fields: names that every row must have, besides `token`.
        report: told of a file that cannot be read or parsed, of rows that lack fields and of repeated tokens.
        on_bytes: told the number of bytes of each block that was read.

    Attributes:
        sha256: of the file's content, once all rows were read.
        complete: whether all rows were read; a table that breaks off is not.
        rejected: tokens of rows that were reported.
    """

    def __init__(
        self, path: Path, fields: Collection[str], report: Report, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        self.path = path
        self.complete = False
        self.sha256 = ""
        self.rejected: set[str] = set()
        self._fields = frozenset(fields)
        self._report = report
        self._on_bytes = on_bytes or (lambda _: None)

    def __iter__(self) -> Iterator[Row]:
        hashes = array("q")
        try:
            with self.path.open("rb") as handle:
                for number, row in enumerate(self._objects(handle)):
                    if self._is_sound(row, number):
                        hashes.append(hash(row["token"]))
                        yield row
            self.complete = True
        except OSError as error:
            self._report("table", f"nuScenes table {self.path} cannot be read: {error.strerror or error}")
        except ValueError as error:
            self._report("table", f"nuScenes table {self.path} is not valid JSON (truncated copy?): {error}")
        self._check_repeats(np.frombuffer(hashes, dtype=np.int64))

    def _objects(self, handle: BinaryIO) -> Iterator[Any]:
        """JSON values of the list in the file; ValueError where it is no list of objects."""
        decoder, text = json.JSONDecoder(), _Text(handle, self._on_bytes)
        if text.next_character() != "[":
            raise ValueError("expected a list of rows")
        text.position += 1
        closed = text.next_character() == "]"
        text.position += closed
        while not closed:
            if text.next_character() != "{":
                raise ValueError(f"expected a row {{...}} at character {text.consumed}")
            yield from text.whole_rows()
            yield text.decode(decoder)
            mark = text.next_character()
            if mark not in (",", "]"):
                raise ValueError(f"expected ',' or ']' after a row at character {text.consumed}")
            closed = mark == "]"
            text.position += 1
        if not text.exhausted():
            raise ValueError("more text after the list of rows")
        self.sha256 = text.digest.hexdigest()

    def _is_sound(self, row: Row, number: int) -> bool:
        token = row.get("token")
        if isinstance(token, str) and row.keys() >= self._fields:
            return True
        missing = sorted(self._fields - row.keys())
        if isinstance(token, str):
            self.rejected.add(token)
        problem = f"lacks {', '.join(missing)}" if isinstance(token, str) else f"has no token (a text), got {token!r}"
        self._report("table", f"nuScenes table {self.path}: row {number} ({token!r}) {problem}")
        return False

    def _check_repeats(self, hashes: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        ordered = np.sort(hashes)
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not suspects:
            return
        counts: dict[str, int] = {}
        with self.path.open("rb") as handle:  # hashes may collide: the second look is at the tokens themselves
            for row in self._objects(handle):
                if isinstance(row.get("token"), str) and hash(row["token"]) in suspects:
                    counts[row["token"]] = counts.get(row["token"], 0) + 1
        extra = sum(count - 1 for count in counts.values())
        if extra:
            first = [token for token, count in counts.items() if count > 1][:3]
            self._report(
                "token",
                f"nuScenes table {self.path} repeats tokens: {len(hashes)} rows, {len(hashes) - extra} tokens; "
                f"the first repeated ones: {first}",
            )


class _Text:
    """A file's text, read in blocks; `position` moves on in what is buffered."""

    def __init__(self, handle: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self.digest = hashlib.sha256()
        self.buffer, self.position = "", 0
        self._handle, self._on_bytes = handle, on_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._passed, self._ended = 0, False

    @property
    def consumed(self) -> int:
        """Characters before the position, from the start of the file."""
        return self._passed + self.position

    def next_character(self) -> str:
        """Go on to the next character that is no space; '' at the end."""
        while True:
            match = _SPACE.match(self.buffer, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.buffer) or not self._fill():
                return self.buffer[self.position : self.position + 1]

    def whole_rows(self) -> list[Any]:
        """The rows up to the last one that starts in the buffer, at once, for speed; none where that does not work.

        The cut may fall into a nested list or a text: what is before it is then no JSON, and rows are read one by one.
        """
        cut = self.buffer.rfind("}", self.position, self.buffer.rfind("{"))
        comma = _COMMA.match(self.buffer, cut + 1) if cut > self.position else None
        if comma is None:
            return []
        try:
            rows: list[Any] = json.loads(f"[{self.buffer[self.position : cut + 1]}]")
        except json.JSONDecodeError:
            return []
        if not all(isinstance(row, dict) for row in rows):
            return []
        self.position = comma.end()
        return rows

    def decode(self, decoder: json.JSONDecoder) -> Any:
        """The JSON value at the position, which then stands behind it."""
        while True:
            try:
                value, self.position = decoder.raw_decode(self.buffer, self.position)
                return value
            except json.JSONDecodeError as error:
                if len(self.buffer) - self.position > _LONGEST_ROW or not self._fill():
                    place = self._passed + error.pos
                    raise ValueError(f"{error.msg}: character {place}") from error

    def exhausted(self) -> bool:
        """Whether nothing but spaces is left; all of the file is read then."""
        return self.next_character() == ""

    def _fill(self) -> bool:
        if self._ended:
            return False
        block = self._handle.read(_CHUNK_BYTES)
        self._ended = not block
        self.digest.update(block)
        self._on_bytes(len(block))
        self._passed += self.position
        self.buffer = self.buffer[self.position :] + self._decoder.decode(block, final=self._ended)
        self.position = 0
        return not self._ended
