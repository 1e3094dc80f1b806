"""The index of the tables: the same samples as without it, found again by content, and never trusted when damaged."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data import index_cache, table_rows
from bevkd_deploy.data.index_build import IndexBuilder
from bevkd_deploy.data.index_cache import Listener, index_cache_folder, open_index
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.table_index import TableIndex, Texts
from bevkd_deploy.data.table_rows import TableRows, fail

VERSION = "v1.0-trainval"


@pytest.fixture
def tables(tiny_world: Path, tmp_path: Path) -> Path:
    """Tables that no other test has indexed: their content is their own."""
    shutil.copytree(tiny_world / VERSION, tmp_path / VERSION)
    rows = json.loads((tmp_path / VERSION / "attribute.json").read_text())
    rows.append({"token": str(tmp_path), "name": "own", "description": ""})
    (tmp_path / VERSION / "attribute.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEVKD_INDEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def samples_of(tables: NuScenesTables) -> list[Sample]:
    return tables.samples(set(tables.scene_names()), CAMERA_NAMES, sweeps=3)


def assert_same(ours: Any, theirs: Any) -> None:
    """Exactly equal, through all fields."""
    assert type(ours) is type(theirs)
    if isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    elif dataclasses.is_dataclass(ours):
        for field in dataclasses.fields(ours):
            assert_same(getattr(ours, field.name), getattr(theirs, field.name))
    elif isinstance(ours, (tuple, list)):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    else:
        assert ours == theirs


def forbid_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_build(*_: object) -> None:
        raise AssertionError("the tables are read again")

    monkeypatch.setattr(IndexBuilder, "build", no_build)


def test_a_kept_index_gives_the_very_same_samples(tables: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = samples_of(NuScenesTables(tables, VERSION))
    (file,) = cache.glob("*.npz")
    forbid_building(monkeypatch)
    warm = samples_of(NuScenesTables(tables, VERSION))
    assert len(cold) == 8 and sum(len(sample.boxes) for sample in cold) > 50
    assert_same(cold, warm)
    with np.load(file, allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored)


def test_other_tables_get_an_index_of_their_own(tables: Path, cache: Path) -> None:
    before = samples_of(NuScenesTables(tables, VERSION))
    path = tables / VERSION / "sample_annotation.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["num_lidar_pts"] += 1
    path.write_text(json.dumps(rows))
    after = samples_of(NuScenesTables(tables, VERSION))
    assert np.array_equal(after[0].num_points, before[0].num_points + 1)
    assert len(list(cache.glob("*.npz"))) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign", "shorter column"])
def test_a_damaged_index_is_made_again(tables: Path, cache: Path, damage: str) -> None:
    cold = samples_of(NuScenesTables(tables, VERSION))
    (file,) = cache.glob("*.npz")
    content = file.read_bytes()
    if damage == "shorter column":
        index = TableIndex.load(file, file.stem)
        dataclasses.replace(index, box_label=index.box_label[:-1]).save(file, file.stem)
    else:
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        file.write_bytes(
            {
                "cut": content[:-1000],
                "bit": content[:middle] + flipped + content[middle + 1 :],
                "empty": b"",
                "foreign": b"not an index",
            }[damage]
        )
    said: list[str] = []
    warm = samples_of(NuScenesTables(tables, VERSION, Listener(say=said.append)))
    assert_same(cold, warm)
    assert len(said) == 1 and str(file) in said[0] and "damaged" in said[0] and "made again" in said[0]
    TableIndex.load(file, file.stem)  # what is kept now is sound


def test_an_index_of_another_version_is_not_used(tables: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_index(tables, VERSION)
    (file,) = cache.glob("*.npz")
    monkeypatch.setattr("bevkd_deploy.data.table_index.INDEX_VERSION", 0)
    with pytest.raises(DataError, match="of another version or of other tables"):
        TableIndex.load(file, file.stem)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_is_said_and_not_fatal(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")  # no user, root included, can make a folder below a file
    monkeypatch.setenv("BEVKD_INDEX_CACHE", str(tmp_path / "file" / "cache"))
    said: list[str] = []
    assert len(samples_of(NuScenesTables(tables, VERSION, Listener(say=said.append)))) == 8
    assert len(said) == 1 and "is not kept" in said[0] and "BEVKD_INDEX_CACHE" in said[0]


def _open(root: Path) -> int:
    return len(open_index(root, VERSION).sample_token)


def test_processes_that_race_all_get_it(tables: Path, cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_open, [tables] * 4) == [8] * 4
    (file,) = cache.iterdir()  # and no temporary file is left
    TableIndex.load(file, file.stem)


def test_where_indices_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEVKD_INDEX_CACHE", str(tmp_path / "own"))
    assert index_cache_folder() == tmp_path / "own"
    monkeypatch.delenv("BEVKD_INDEX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert index_cache_folder() == tmp_path / "xdg" / "bevkd" / "index"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert index_cache_folder() == tmp_path / "home" / ".cache" / "bevkd" / "index"


def test_progress_counts_every_byte_twice(tables: Path, cache: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    open_index(tables, VERSION, Listener(progress=lambda title, done, total: seen.update({title: (done, total)})))
    assert len(seen) == 2
    assert all(done == total > 0 for done, total in seen.values())
    assert cache.is_dir() and index_cache.CACHE_VARIABLE == "BEVKD_INDEX_CACHE"


def test_texts_keep_any_string() -> None:
    texts = ["", "a", "ö" * 3, "\ud800", "x/y.jpg"]
    packed = Texts.of(texts)
    assert list(packed) == texts and packed[1:3] == texts[1:3] and packed[-1] == "x/y.jpg"
    assert list(Texts.of([])) == []


def rows_of(path: Path, text: bytes) -> list[Any]:
    path.write_bytes(text)
    return list(TableRows(path, (), fail))


def test_rows_are_those_of_json_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"token": f"t{n}", "text": 'é"]},{[\\', "list": [n, {"deep": [None, 1e300]}]} for n in range(50)]
    for size in (1, 2, 7, 64, 1 << 20):
        monkeypatch.setattr(table_rows, "_CHUNK_BYTES", size)
        for indent in (None, 2):
            for ascii_only in (True, False):
                text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode() + b" \n"
                assert rows_of(tmp_path / "table.json", text) == rows
    assert rows_of(tmp_path / "table.json", b" [ ] ") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "expected a list of rows"),
        (b'{"token": "a"}', "expected a list of rows"),
        (b'[{"token": "a"}', "expected ',' or ']' after a row at character 15"),
        (b'[{"token": "a"},', "expected a row"),
        (b'[{"token": "a"} {"token": "b"}]', "expected ',' or ']' after a row"),
        (b'[{"token": "a"}, 7]', "expected a row {...} at character 17"),
        (b'[{"token": "a"}, 7, {"token": "b"}, {"token": "c"}]', "expected a row {...} at character 17"),
        (b'[{"token": "a"}] []', "more text after the list"),
        (b'[{"token": "a", "b": nope}]', "Expecting value: character 22"),
        (b'[{"token": "a", "b": "cut', "Unterminated string starting at: character 22"),
        (b'[{"token": "\xff"}]', "can't decode byte 0xff"),
        (b'[{"name": "a"}]', "row 0 (None) has no token (a text), got None"),
        (b'[{"token": 5}]', "row 0 (5) has no token (a text), got 5"),
        (b'[{"token": "a"}, {"token": "b"}, {"token": "a"}]', "repeats tokens: 3 rows, 2 tokens; the first repeated"),
    ],
)
def test_malformed_tables_are_located(tmp_path: Path, text: bytes, problem: str) -> None:
    with pytest.raises(DataError) as error:
        rows_of(tmp_path / "table.json", text)
    assert str(tmp_path / "table.json") in str(error.value)
    assert problem in str(error.value)
