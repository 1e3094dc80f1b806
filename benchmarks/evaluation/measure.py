"""Speed of the evaluation on one core, beside nuscenes-devkit in the same run; memory on 3 M boxes.

python benchmarks/evaluation/measure.py [--scratch DIR]

Needs nuscenes-devkit, 5 GB of disk and some minutes. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scenario import EGO_M, frames

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.evaluation.bootstrap import difference_interval, scene_statistics
from bevkd_deploy.evaluation.box_table import BoxTable
from bevkd_deploy.evaluation.metrics import evaluate, evaluate_tables
from bevkd_deploy.evaluation.records import Kind, read_boxes
from bevkd_deploy.evaluation.submission_files import read_submission

HERE = Path(__file__).resolve().parent
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
REPEATS = 5
PEER_FRAMES, PEER_BOXES = 1000, 200
SPLIT_FRAMES, SPLIT_BOXES = 6019, 500
TRUTHS = {"realistic": 34, "crowded": None}  # nuScenes has 34 annotations a frame; crowded: as many as predictions
FRAMES_PER_SCENE = 40


def best_seconds(run: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, Any]:
    """Least processor time of several runs, and the last result.

    All of it is one thread that waits for nothing: on an idle core this is the time on the clock, and on a machine that
    others use too it does not count their share.
    """
    seconds = []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
    return min(seconds), result


class Tables:
    """The rows that the devkit's filters look up: one ego pose for all samples, no bicycle racks."""

    def get(self, table: str, token: str) -> dict[str, Any]:
        """One row."""
        if table == "sample":
            return {"data": {"LIDAR_TOP": token}, "anns": []}
        return {"ego_pose_token": token} if table == "sample_data" else {"translation": EGO_M.tolist()}


def write_files(folder: Path, count: int, predicted: int, truths: int) -> tuple[Path, Path]:
    """A results and a ground-truth file, frame by frame; unknown velocities are NaN, as the devkit writes them."""
    paths = (folder / f"results-{count}x{predicted}x{truths}.json", folder / f"truth-{count}x{predicted}x{truths}.json")
    with open(paths[0], "w") as results, open(paths[1], "w") as truth:
        for handle in (results, truth):
            handle.write('{"meta": {"use_lidar": true}, "results": {')
        for index, (token, found, real) in enumerate(frames(count, predicted, truths)):
            for handle, records in ((results, found), (truth, real)):
                handle.write(f'{", " if index else ""}"{token}": {json.dumps(records)}')
        for handle in (results, truth):
            handle.write("}}")
    return paths


def against_devkit(folder: Path, truths: int) -> dict[str, Any]:
    """Ours and the devkit's on the same boxes: matching and scores, from records, and from files."""
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_prediction
    from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.constants import TP_METRICS
    from nuscenes.eval.detection.data_classes import DetectionBox

    config = config_factory("detection_cvpr_2019")

    def load(path: Path) -> Any:
        boxes, _ = load_prediction(str(path), 10**6, DetectionBox)
        return filter_eval_boxes(Tables(), add_center_dist(Tables(), boxes), config.class_range)

    def score(predicted: Any, truth: Any) -> float:
        aps = []
        for name in config.class_names:
            for threshold_m in config.dist_ths:
                curve = accumulate(truth, predicted, name, config.dist_fcn_callable, threshold_m)
                aps.append(calc_ap(curve, config.min_recall, config.min_precision))
                if threshold_m == config.dist_th_tp:
                    for metric in TP_METRICS:
                        calc_tp(curve, config.min_recall, metric)
        return float(np.mean(aps))

    results: dict[str, Any] = {}
    truth: dict[str, Any] = {}
    for token, found, real in frames(PEER_FRAMES, PEER_BOXES, truths):
        results[token], truth[token] = found, real
    files = write_files(folder, PEER_FRAMES, PEER_BOXES, truths)
    boxes = [EvalBoxes.deserialize(side, DetectionBox) for side in (results, truth)]
    filtered = [filter_eval_boxes(Tables(), add_center_dist(Tables(), side), config.class_range) for side in boxes]
    theirs, mean_ap = best_seconds(lambda: score(*filtered), 1)
    loading, _ = best_seconds(lambda: [load(path) for path in files], 1)
    tables = read_boxes(results, Kind.RESULTS), read_boxes(truth, Kind.GROUND_TRUTH)
    ours = {
        "table": best_seconds(lambda: evaluate_tables(*tables).summary)[0],
        "records": best_seconds(lambda: evaluate(results, truth))[0],
        "files": best_seconds(lambda: _evaluate_files(*files).summary)[0],
    }
    for path in files:
        path.unlink()
    assert abs(evaluate_tables(*tables).summary["mean_ap"] - mean_ap) < 1e-9
    return {
        "frames": PEER_FRAMES,
        "predicted_boxes_per_frame": PEER_BOXES,
        "truth_boxes_per_frame": truths,
        "mean_ap": mean_ap,
        "devkit_s": {"accumulate_and_score": theirs, "load_and_filter": loading},
        "ours_s": ours,
        "times_faster": {
            "table": theirs / ours["table"],
            "records": theirs / ours["records"],
            "files": (loading + theirs) / ours["files"],
        },
    }


def whole_split(folder: Path, truths: int) -> dict[str, Any]:
    """Time and peak memory of a process each: from columns, and `bevkd evaluate` from files."""
    files = write_files(folder, SPLIT_FRAMES, SPLIT_BOXES, truths)
    columns = [folder / f"{path.stem}.npz" for path in files]
    # In a process of its own: a child's peak memory counts from that of its parent.
    _measured([__file__, "--columns", *map(str, files), *map(str, columns)])
    report = folder / "figures.json"
    command = ["-m", "bevkd_deploy.cli.main", "evaluate", str(files[0]), "--ground-truth", str(files[1])]
    from_files = _measured([*command, "--json", str(report)])
    table_seconds = folder / "seconds.json"
    from_table = _measured([__file__, "--table", *map(str, columns), str(table_seconds)])
    from_table["evaluation_s"] = json.loads(table_seconds.read_text())["seconds"]
    result = {
        "frames": SPLIT_FRAMES,
        "predicted_boxes_per_frame": SPLIT_BOXES,
        "truth_boxes_per_frame": truths,
        "file_mb": [path.stat().st_size / 1e6 for path in files],
        "mean_ap": json.loads(report.read_text())["mean_ap"],
        "table": from_table,
        "bevkd_evaluate": from_files,
    }
    for path in (*files, *columns):
        path.unlink()
    return result


def bootstrap() -> dict[str, Any]:
    """A thousand draws of the difference of two results."""
    results: dict[str, Any] = {}
    truth: dict[str, Any] = {}
    for token, found, real in frames(PEER_FRAMES, PEER_BOXES, 34):
        results[token], truth[token] = found, real
    other = {token: records[: PEER_BOXES * 9 // 10] for token, records in results.items()}
    scenes = [f"scene-{index // FRAMES_PER_SCENE}" for index in range(PEER_FRAMES)]
    real_boxes = read_boxes(truth, Kind.GROUND_TRUTH)
    sides = [
        scene_statistics(evaluate_tables(read_boxes(side, Kind.RESULTS), real_boxes), scenes)
        for side in (other, results)
    ]
    seconds, difference = best_seconds(lambda: difference_interval(*sides, replicates=1000), 1)
    return {
        "frames": PEER_FRAMES,
        "predicted_boxes_per_frame": PEER_BOXES,
        "scenes": difference.units,
        "replicates": difference.replicates,
        "seconds": seconds,
    }


def _evaluate_files(results: Path, truth: Path) -> Any:
    predicted = read_submission(results, Kind.RESULTS).boxes
    return evaluate_tables(predicted, read_submission(truth, Kind.GROUND_TRUTH).boxes.of_samples(predicted.tokens))


def _measured(arguments: list[str]) -> dict[str, float]:
    """Seconds on the clock and on the processor, and peak memory, of a Python process from its start to its end."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{arguments} failed")
    return {"wall_s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_gib": usage.ru_maxrss / 2**20}


def _write_columns(results: Path, truth: Path, *columns: Path) -> None:
    for path, kind, out in zip((results, truth), Kind, columns, strict=True):
        table = read_submission(path, kind).boxes
        np.savez(out, tokens=np.array(table.tokens), **table._columns())


def _evaluate_columns(results: Path, truth: Path, out: Path) -> None:
    tables = []
    for path in (results, truth):
        with np.load(path) as archive:
            columns = {name: archive[name] for name in archive.files}
        tokens = tuple(columns.pop("tokens").tolist())
        tables.append(BoxTable(tokens=tokens, **{"num_pts": None, "ego_distance_m": None, **columns}))
    seconds, _ = best_seconds(lambda: evaluate_tables(*tables).summary, 3)
    write_json(out, {"seconds": seconds})


def measure(folder: Path) -> dict[str, Any]:
    """All of it."""
    environment = collect_environment()
    versions = {name: importlib.metadata.version(name) for name in ("nuscenes-devkit", "msgspec", "numpy")}
    return {
        "note": "seconds are processor time of one thread, except wall_s; load_average is that of the machine",
        "load_average": os.getloadavg(),
        "environment": environment,
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "against_devkit": {name: against_devkit(folder, count or PEER_BOXES) for name, count in TRUTHS.items()},
        "whole_split": {name: whole_split(folder, count or SPLIT_BOXES) for name, count in TRUTHS.items()},
        "bootstrap": bootstrap(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="folder for the large files; by default a temporary one")
    parser.add_argument("--columns", type=Path, nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.columns:
        _write_columns(*given.columns)
    elif given.table:
        _evaluate_columns(*given.table)
    elif THREADS.items() - os.environ.items():
        # Libraries read these when they load, so everything runs in a process that has them, on one core.
        raise SystemExit(
            subprocess.run([sys.executable, *sys.argv], env={**os.environ, **THREADS}, check=False).returncode
        )
    else:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            write_json(HERE / "results.json", measure(Path(scratch)))
