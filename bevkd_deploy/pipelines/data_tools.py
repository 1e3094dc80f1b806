"""`bevkd data check` and `bevkd data infos`."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bevkd_deploy.contracts.errors import DataError, FindingsError
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.data.check import CheckResult, check_dataset
from bevkd_deploy.data.index_cache import Listener
from bevkd_deploy.data.mmdet3d_export import write_infos
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.source import split_scenes
from bevkd_deploy.data.splits import official_splits
from bevkd_deploy.pipelines.progress import Bar, bar, late_bar

_SPLIT_NAMES = {"v1.0-mini": ("mini_train", "mini_val"), "v1.0-test": ("test",)}


def check_data(
    root: Path, infos: Path | None, *, workers: int, json: Path | None, console: Console, results: Console
) -> CheckResult:
    """Check a dataset; one line per finding goes to `results`, or everything as JSON to the file `json`.

    Raises:
        FindingsError: something is missing or broken.
    """
    with late_bar(console) as progress, _FilesBar(console, "reading sensor files") as files:
        result = check_dataset(root, infos, workers=workers, listener=Listener(progress), on_files=files.update)
    for finding in result.findings:
        results.print(f"{finding.kind}: {finding.problem}", markup=False, soft_wrap=True)
    if json:
        write_json(json, {"root": str(root), "infos": infos and str(infos), **asdict(result)})
    if result.findings:
        kinds = Counter(finding.kind for finding in result.findings)
        counted = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        noun = "finding" if len(result.findings) == 1 else "findings"
        raise FindingsError(f"{infos or root}: {len(result.findings)} {noun} ({counted})")
    console.print(f"{infos or root}: complete, {result.samples} frames and {result.files} sensor files", markup=False)
    return result


def export_infos(root: Path, version: str, out_dir: Path, *, sweeps: int, console: Console) -> list[Path]:
    """Write the training and the validation split of a dataset as mmdet3d info files; returns them.

    Raises:
        DataError: the dataset is missing or damaged, or none of its splits holds samples.
    """
    with late_bar(console) as progress:
        tables = NuScenesTables(root, version, Listener(progress, lambda line: console.print(f"  {line}")))
    own = (root / "splits.json").is_file()
    there = set(tables.scene_names())
    written: list[Path] = []
    for name in ("train", "val") if own else _SPLIT_NAMES.get(version, official_splits()[:2]):
        scenes = split_scenes(root, name) & there
        if not scenes:
            console.print(f"  split {name}: no scenes in {root}, no file", markup=False)
            continue
        path = out_dir / f"nuscenes_infos_{name.removeprefix('mini_')}.pkl"
        with _FilesBar(console, f"writing {path}") as frames:
            write_infos(tables, version, scenes, path, sweeps=sweeps, on_sample=frames.update)
        written.append(path)
    if not written:
        raise DataError(f"{root} ({version}) has no scenes of any split; its scenes: {sorted(there)[:5]}")
    return written


class _FilesBar:
    """A bar whose length is known only when the first step is done."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._stack = ExitStack()
        self._bar: Bar | None = None

    def __enter__(self) -> _FilesBar:
        return self

    def update(self, done: int, total: int) -> None:
        """`done` of `total` are done."""
        if self._bar is None:
            self._bar = self._stack.enter_context(bar(self._console, self._title, total))
        self._bar.update(done)

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
