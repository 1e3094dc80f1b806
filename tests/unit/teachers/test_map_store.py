"""Maps on disk: what was put in comes back, or nothing does."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError, NonFiniteError
from bevkd_deploy.teachers import map_store
from bevkd_deploy.teachers.map_store import MapStore

KEY = "a" * 64


def maps_of(entry: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(entry)
    return {
        "heatmap": torch.randn((3, 4, 5), generator=generator) * 4,
        "reg": torch.rand((2, 4, 5), generator=generator),
        "rot": torch.zeros((2, 4, 5)),
    }


def store_of(
    folder: Path, maps: tuple[str, ...] = ("heatmap", "reg"), dtype: torch.dtype = torch.float16, key: str = KEY,
    write_at_bytes: int = 10**9, write_after_s: float = 1e9,
) -> MapStore:  # fmt: skip
    return MapStore(folder, key, maps, dtype, write_at_bytes=write_at_bytes, write_after_s=write_after_s)


def fill(store: MapStore, *entries: int) -> None:
    for entry in entries:
        store.put(entry, maps_of(entry))
    store.flush()


def assert_right(store: MapStore, entry: int, dtype: torch.dtype = torch.float16) -> None:
    got = store.get(entry)
    assert got is not None and set(got) == set(store.maps)
    for name, value in got.items():
        assert value.dtype == dtype
        assert torch.equal(value, maps_of(entry)[name].to(dtype))


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("maps-*"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_put_comes_back_before_and_after_it_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    store = store_of(tmp_path, dtype=dtype)
    assert 7 not in store and store.get(7) is None
    given = store.put(7, maps_of(7))
    assert all(torch.equal(given[name], maps_of(7)[name].to(dtype)) for name in store.maps)
    assert "rot" not in given
    assert 7 in store and files_of(tmp_path) == []
    assert_right(store, 7, dtype)
    fill(store, 2, 10**12)
    assert len(files_of(tmp_path)) == 1
    for again in (store, store_of(tmp_path, dtype=dtype)):
        assert [entry in again for entry in (2, 7, 10**12, 3)] == [True, True, True, False]
        for entry in (2, 7, 10**12):
            assert_right(again, entry, dtype)
    # Anybody can open a file.
    assert load_file(files_of(tmp_path)[0])["entry"].tolist() == [2, 7, 10**12]


def test_a_put_map_is_a_copy(tmp_path: Path) -> None:
    store = store_of(tmp_path, dtype=torch.float32)
    maps = maps_of(1)
    store.put(1, maps)
    maps["heatmap"].zero_()
    assert_right(store, 1, torch.float32)


def test_entries_are_written_when_they_are_many_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_per_entry = (3 + 2) * 4 * 5 * 2
    store = store_of(tmp_path / "many", write_at_bytes=3 * bytes_per_entry)
    for entry in range(7):
        store.put(entry, maps_of(entry))
    assert len(files_of(tmp_path / "many")) == 2
    assert store.size().entries == 7
    assert store.size().bytes == sum(f.stat().st_size for f in files_of(tmp_path / "many")) + bytes_per_entry
    now = 100.0
    monkeypatch.setattr(map_store.time, "monotonic", lambda: now)
    store = store_of(tmp_path / "old", write_after_s=60)
    store.put(0, maps_of(0))
    now = 159.0
    store.put(1, maps_of(1))
    assert files_of(tmp_path / "old") == []
    now = 160.0
    store.put(2, maps_of(2))
    assert len(files_of(tmp_path / "old")) == 1


def test_files_of_another_key_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(store_of(tmp_path, key="b" * 64), 1)
    with caplog.at_level(logging.WARNING):
        store = store_of(tmp_path)
    assert 1 not in store
    assert "belongs to another teacher" in caplog.text
    assert len(files_of(tmp_path)) == 1  # and not removed: it may be right for somebody


def test_entries_without_a_needed_map_are_unknown(tmp_path: Path) -> None:
    fill(store_of(tmp_path, ("heatmap",)), 1, 2)
    store = store_of(tmp_path)
    assert 1 not in store
    fill(store, 1)
    heatmaps = store_of(tmp_path, ("heatmap",))
    assert 1 in heatmaps and 2 in heatmaps
    assert_right(heatmaps, 1)
    assert_right(store_of(tmp_path), 1)


def test_damage_at_any_byte_gives_the_right_values_or_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(store_of(tmp_path), 0, 1, 2)
    path = files_of(tmp_path)[0]
    whole = path.read_bytes()
    lost = 0
    for place in range(0, len(whole), 5):
        broken = bytearray(whole)
        broken[place] ^= 0x41
        path.write_bytes(broken)
        store = store_of(tmp_path)
        for entry in (0, 1, 2):
            if store.get(entry) is None:
                lost += 1
                assert entry not in store
            else:
                assert_right(store, entry)
    assert lost > len(whole) / 5
    for length in (0, 5, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert store_of(tmp_path).size().entries == 0
        assert not path.exists()
    assert "is damaged" in caplog.text
    store = store_of(tmp_path)
    fill(store, 0, 1, 2)
    assert_right(store, 2)


def test_a_file_that_somebody_else_removed_is_forgotten(tmp_path: Path) -> None:
    fill(store_of(tmp_path), 0, 1)
    store = store_of(tmp_path)
    shutil.rmtree(tmp_path)
    assert store.get(0) is None and 1 not in store
    fill(store, 0)
    assert_right(store, 0)


def test_two_writers_share_what_they_know(tmp_path: Path) -> None:
    first, second = store_of(tmp_path), store_of(tmp_path)
    first.put(1, maps_of(1))
    second.put(1, maps_of(1))
    second.put(2, maps_of(2))
    first.flush()
    second.flush()  # finds 1 there already
    assert sorted(load_file(file)["entry"].tolist() for file in files_of(tmp_path)) == [[1], [2]]
    assert 2 not in first
    first.refresh()
    assert_right(first, 2)


def _write(folder: Path, start: int) -> None:
    store = store_of(folder, write_at_bytes=1000)
    for entry in range(start, start + 20):
        if entry not in store:
            store.put(entry, maps_of(entry))
    store.flush()


def test_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path, start)) for start in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = store_of(tmp_path)
    assert store.size().entries == 30
    for entry in range(30):
        assert_right(store, entry)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_worker_can_be_told_what_is_known(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    fill(store, 1)
    assert_right(store, 1)  # holds an open file now
    store.put(2, maps_of(2))
    copy = pickle.loads(pickle.dumps(store))
    assert 1 in copy and 2 not in copy  # what is not written yet stays with its process


@pytest.mark.parametrize(("value", "dtype"), [(1e5, torch.float16), (float("nan"), torch.float32)])
def test_values_that_cannot_be_kept_are_refused(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    maps = maps_of(0)
    maps["reg"][1, 2, 3] = value
    with pytest.raises(NonFiniteError, match=r"map 'reg' holds values up to .* use teacher\.cache: fp32"):
        store_of(tmp_path, dtype=dtype).put(0, maps)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = store_of(tmp_path / "file" / "cache")
    store.put(0, maps_of(0))
    with pytest.raises(ArtifactError, match=r"cannot write the teacher cache .*free some disk space"):
        store.flush()
