"""Head maps on disk: many entries a file, checked when read, safe with several processes and at any kill."""

from __future__ import annotations

import json
import logging
import time
import uuid
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError, NonFiniteError
from bevkd_deploy.contracts.files import write_atomic

_METADATA = "bevkd.maps/1"
_PATTERN = "maps-*.safetensors"
_OPEN_FILES = 32

#: What reading a damaged file can raise, or one that another process has found damaged and removed.
_DAMAGE = (SafetensorError, FileNotFoundError, LookupError, ValueError, TypeError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSize:
    """How much a store holds.

    Attributes:
        entries: that can be read.
        bytes: of all its files, those without all maps that are asked for included.
    """

    entries: int
    bytes: int


class MapStore:
    """Maps by entry number, for one key.

    A file holds the entries that one process has put in between two writes: safetensors with "entry" [n] int64, each
    map [n, C, Y, X], and "check" [n, maps] with a checksum of every map of every entry. Files are never changed, so
    readers and writers need no lock; two processes that put the same entry waste its space and nothing else. A file
    that is cut short or does not match its checksums is removed, and its entries are unknown again.

    Not for worker processes to read from: they may ask what is in it.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        maps: Iterable[str],
        dtype: torch.dtype,
        *,
        exact: Collection[str] = (),
        write_at_bytes: int = 64_000_000,
        write_after_s: float = 60.0,
    ) -> None:
        """Look at what is in a folder.

        Args:
            folder: of the files; made when the first one is written.
            key: hash of everything that decides an entry's values; files of another key are not read.
            maps: names of the maps that are needed; entries without one of them count as unknown.
            dtype: of the stored values.
            exact: maps that are stored as float32 whatever the dtype is: positions in metres.
            write_at_bytes: entries that wait are written when they have this size together.
            write_after_s: and when the oldest of them has waited this long, so that a kill loses little.
        """
        self.folder, self.key, self.maps = folder, key, tuple(sorted(maps))
        self.dtypes = {name: torch.float32 if name in exact else dtype for name in self.maps}
        self._write_at_bytes, self._write_after_s = write_at_bytes, write_after_s
        self._seen: set[Path] = set()
        self._index: dict[int, tuple[Path, int]] = {}
        self._pending: dict[int, dict[str, Tensor]] = {}
        self._oldest = 0.0
        self._open: dict[Path, Any] = {}
        self.refresh()

    def __contains__(self, entry: object) -> bool:
        return entry in self._index or entry in self._pending

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_pending": {}}

    def size(self) -> StoreSize:
        """Readable entries, and bytes on disk and waiting to be written."""
        written = sum(path.stat().st_size for path in self.folder.glob(_PATTERN)) if self.folder.is_dir() else 0
        return StoreSize(len(self._index.keys() | self._pending.keys()), written + self._pending_bytes())

    def refresh(self) -> None:
        """Take in the files that other processes have written."""
        for path in sorted(self.folder.glob(_PATTERN)):
            if path not in self._seen:
                self._seen.add(path)
                self._take_in(path)

    def get(self, entry: int) -> dict[str, Tensor] | None:
        """The maps of an entry, [C, Y, X] in the stored dtype; None where they are not known, or damaged."""
        if entry in self._pending:
            return dict(self._pending[entry])
        if entry not in self._index:
            return None
        path, row = self._index[entry]
        try:
            return self._read(path, row, entry)
        except _DAMAGE as error:
            self._remove(path, error)
            return None

    def put(self, entry: int, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep the maps of an entry, and return them as `get` will: with the values that the stored dtype leaves.

        Args:
            entry: number.
            maps: [C, Y, X] each; those that are not needed are not kept.

        Raises:
            NonFiniteError: a map holds NaN, infinity or a number too large for the stored dtype.
        """
        kept = {}
        for name, dtype in self.dtypes.items():
            kept[name] = maps[name].detach().to("cpu", dtype, copy=True).contiguous()
        for name, value in kept.items():
            if not torch.isfinite(value).all():
                largest = float(maps[name].abs().max())
                raise NonFiniteError(
                    f"the teacher's map '{name}' holds values up to {largest:g}, which {self.dtypes[name]} cannot: "
                    "use teacher.cache: fp32, or check the teacher"
                )
        if not self._pending:
            self._oldest = time.monotonic()
        self._pending[entry] = kept
        if self._pending_bytes() >= self._write_at_bytes or time.monotonic() - self._oldest >= self._write_after_s:
            self.flush()
        return dict(kept)

    def flush(self) -> None:
        """Write what waits, but for what another process has written in the meantime.

        Raises:
            ArtifactError: the folder cannot be written to.
        """
        self.refresh()
        rows = {entry: maps for entry, maps in sorted(self._pending.items()) if entry not in self._index}
        if rows:
            path = self.folder / f"maps-{uuid.uuid4().hex}.safetensors"
            # Not torch.stack: within a step, autocast refuses to stack halves on a CPU.
            stacked = {name: np.stack([maps[name].numpy() for maps in rows.values()]) for name in self.maps}
            tensors = {name: torch.from_numpy(values) for name, values in stacked.items()}
            tensors["entry"] = torch.tensor(list(rows), dtype=torch.int64)
            tensors["check"] = torch.tensor(
                [[_checksum(entry, name, maps[name]) for name in self.maps] for entry, maps in rows.items()],
                dtype=torch.int64,
            )
            header = {_METADATA: json.dumps({"key": self.key, "maps": self.maps})}
            try:
                write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=header))
            except (OSError, SafetensorError) as error:
                raise ArtifactError(
                    f"cannot write the teacher cache {self.folder}: {error}; free some disk space, or remove "
                    "teacher.cache from the recipe"
                ) from error
            self._seen.add(path)
            self._index.update({entry: (path, row) for row, entry in enumerate(rows)})
        self._pending.clear()

    def _pending_bytes(self) -> int:
        return sum(value.nbytes for maps in self._pending.values() for value in maps.values())

    def _take_in(self, path: Path) -> None:
        """Index one file, if it is of this key and has what is needed."""
        try:
            handle = safe_open(path, framework="pt")
            metadata = json.loads((handle.metadata() or {})[_METADATA])
            if metadata["key"] != self.key:
                logger.warning("%s belongs to another teacher, data set or augmentation; it is not used", path)
            elif set(self.maps) <= set(metadata["maps"]):
                for row, entry in enumerate(handle.get_tensor("entry").tolist()):
                    self._index.setdefault(entry, (path, row))
        except _DAMAGE as error:
            self._remove(path, error)

    def _read(self, path: Path, row: int, entry: int) -> dict[str, Tensor]:
        if path not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open)))
            self._open[path] = safe_open(path, framework="pt")
        handle = self._open[path]
        names = json.loads(handle.metadata()[_METADATA])["maps"]
        checks = handle.get_slice("check")[row : row + 1][0].tolist()
        maps = {name: handle.get_slice(name)[row : row + 1][0] for name in self.maps}
        for name, value in maps.items():
            if value.dtype != self.dtypes[name] or _checksum(entry, name, value) != checks[names.index(name)]:
                raise ValueError(f"entry {entry} does not match its checksum")
        return maps

    def _remove(self, path: Path, error: Exception) -> None:
        logger.warning("teacher cache file %s is damaged (%s); removed, its entries are made again", path, error)
        self._open.pop(path, None)
        self._index = {entry: place for entry, place in self._index.items() if place[0] != path}
        path.unlink(missing_ok=True)


def _checksum(entry: int, name: str, value: Tensor) -> int:
    """CRC-32 of a map's bytes, of its name and of the entry it belongs to."""
    return zlib.crc32(value.contiguous().numpy().data, zlib.crc32(f"{entry} {name}".encode()))
