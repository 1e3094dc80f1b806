"""The index of a nuScenes folder: made once, kept by the hash of the tables, found again by it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.index_build import TABLES, IndexBuilder, tables_key
from bevkd_deploy.data.table_index import TableIndex
from bevkd_deploy.data.table_rows import fail

#: Where indices are kept, instead of `$XDG_CACHE_HOME/bevkd/index` (or `~/.cache/bevkd/index`).
CACHE_VARIABLE = "BEVKD_INDEX_CACHE"

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Listener:
    """Who is told what opening a dataset is about.

    Attributes:
        progress: title, bytes done, bytes in all; called for each block of a table that is read.
        say: a line of talk.
    """

    progress: Callable[[str, int, int], None] = lambda *_: None
    say: Callable[[str], None] = lambda _: None


def index_cache_folder() -> Path:
    """Where indices are kept on this machine."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "bevkd" / "index"


def open_index(root: Path, version: str, listener: Listener | None = None) -> TableIndex:
    """The index of the tables in `root/version`; read from the cache where one of these very tables is kept.

    Raises:
        DataError: there are no such tables, or they are damaged.
    """
    listener = listener or Listener()
    folder = tables_folder(root, version)
    kept = index_cache_folder() / f"{index_key(root, version, listener)}.npz"
    if kept.is_file():
        try:
            return TableIndex.load(kept, kept.stem)
        except DataError as error:
            listener.say(f"{error}; it is made again")
    index, key = IndexBuilder(folder, fail, bytes_meter("reading the tables", folder, listener)).build()
    try:
        index.save(kept.with_name(f"{key}.npz"), key)
    except OSError as error:
        listener.say(
            f"the index of {folder} is not kept: {kept.parent}: {error.strerror or error}. Name another folder with "
            f"{CACHE_VARIABLE}"
        )
    return index


def tables_folder(root: Path, version: str) -> Path:
    """The folder of one version's tables.

    Raises:
        DataError: there is none; says what is there instead.
    """
    folder = root / version
    if folder.is_dir():
        return folder
    found = sorted(path.name for path in root.glob("v1.0-*"))
    reason = f"the folder holds {found or 'no v1.0-* tables'}" if root.is_dir() else "there is no such folder"
    raise DataError(f"{root} is not a nuScenes root with version {version}: {reason}. Check data.root")


def index_key(root: Path, version: str, listener: Listener | None = None) -> str:
    """Hash of the content of all tables that are read.

    Raises:
        DataError: there are no such tables.
    """
    folder = tables_folder(root, version)
    meter = bytes_meter("comparing the tables with the kept index", folder, listener or Listener())
    digests: dict[str, str] = {}
    for table in TABLES:
        digest = hashlib.sha256()
        try:
            with (folder / f"{table}.json").open("rb") as handle:
                for block in iter(lambda handle=handle: handle.read(_BLOCK_BYTES), b""):  # type: ignore[misc]
                    digest.update(block)
                    meter(len(block))
        except OSError as error:
            path = folder / f"{table}.json"
            raise DataError(f"nuScenes table {path} cannot be read: {error.strerror or error}") from error
        digests[table] = digest.hexdigest()
    return tables_key(digests)


def bytes_meter(title: str, folder: Path, listener: Listener) -> Callable[[int], None]:
    """What adds up the bytes read of a folder's tables and tells a listener."""
    total = sum(path.stat().st_size for path in folder.glob("*.json") if path.stem in TABLES)
    done = 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        listener.progress(title, min(done, total), total)

    return count
