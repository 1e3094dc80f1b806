"""What distillation gives: one student, schedule and budget, without a teacher and with each way of teaching.

python benchmarks/distill_gain/measure.py FOLDER --seeds 0 1 2 --lanes 2

The teacher is trained into FOLDER first. Runs that are already finished in the folder are not run again. The arms stand
in arms.yaml. Writes results.json beside this file; publish.py makes the page of it. With --scan the terms and weights
of scan.yaml are run instead, one at a time and with the first seed alone, and scan.json is written.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import cv2
import torch
import yaml
from rich.console import Console

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.benchmark.latency import SensorFrame, measure_latency
from bevkd_deploy.contracts.files import read_json, write_json
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, load_recipe
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.events import DropLog
from bevkd_deploy.distill.step import TrainingStep
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.detector import FusionDetector, parameter_count
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.accuracy import sensors_of, spread
from bevkd_deploy.pipelines.datasets import prepare_data, read_split
from bevkd_deploy.pipelines.distill import distillation_step, start_student, tap_report
from bevkd_deploy.pipelines.teacher_cache import frozen_teacher
from bevkd_deploy.pipelines.torch_detector import TorchDetector
from bevkd_deploy.pipelines.train import train
from bevkd_deploy.pipelines.training import TrainingJob, job_key, run_training, training_frames

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipe.yaml"
ARMS, SCAN = HERE / "arms.yaml", HERE / "scan.yaml"
_LATENCY_FRAMES, _LATENCY_ROUNDS = 20, 6


def recipe_of(arm: dict[str, Any] | None, seed: int) -> LoadedRecipe:
    """The study's recipe with an arm's distillation."""
    overrides = [f"seed={seed}"]
    if arm is not None:
        overrides.append(f"distill={json.dumps(arm)}")
    return load_recipe(RECIPE, overrides)


def teacher_of(folder: Path, console: Console) -> Path:
    """The teacher's weights; it is trained when they are not there."""
    weights = folder / "teacher" / "checkpoints" / "last.safetensors"
    if not (folder / "teacher" / "eval" / "teacher.json").is_file():
        train(RECIPE, [], run_dir=folder / "teacher", resume=False, student_only=False, console=console)
    return weights


class Lane:
    """One process that runs arms one after another; what its first run has read from the sensors' files stays."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self.folder = folder
        self.first: FrameDataset | None = None

    def run(self, name: str, arm: dict[str, Any] | None, seed: int) -> dict[str, Any]:
        """Train and evaluate one student; its figures stand in `result.json` too."""
        loaded = recipe_of(arm, seed)
        key = job_key(recipe=loaded.digest, distill=arm is not None)
        folder = self.folder / f"run-{key[:12]}"  # by what it is: an arm of another name is not run again
        result_file = folder / "result.json"
        if result_file.is_file():
            kept: dict[str, Any] = read_json(result_file, "result")
            return kept
        recipe, quiet = loaded.recipe, Console(file=io.StringIO())
        root = prepare_data(recipe, quiet)
        specs = {"student": recipe.student_spec()}
        if arm is not None:
            specs["teacher"] = recipe.teacher_spec()
        dataset = training_frames(recipe, root, recipe.student.train, specs, quiet)
        self.first = self.first or dataset
        dataset.share_sensors(self.first)
        start = time.monotonic()
        if arm is None:
            student = build_detector(recipe.student.model, recipe.student_spec(), seed)
            step: torch.nn.Module = TrainingStep(student, "student")
        else:
            teacher = load_teacher(self.folder, loaded)
            student, _ = start_student(recipe, teacher)
            step = distillation_step(
                recipe, student, frozen_teacher(recipe, teacher), tap_report(recipe, dataset, teacher)
            )
        job = TrainingJob(name, folder, key, "student", recipe.student.model, recipe.student.train, seed)
        val = read_split(recipe, root, "val", quiet)
        summary = run_training(job, step, student, dataset, val, resume=False, console=quiet)
        result = {
            "arm": name,
            "seed": seed,
            "mAP": summary["present"]["mean_ap"],
            "NDS": summary["present"]["nd_score"],
            "per_class": summary["mean_dist_aps"],
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(result_file, result)
        return result


def load_teacher(folder: Path, loaded: LoadedRecipe) -> FusionDetector:
    """The trained teacher."""
    recipe = loaded.recipe
    detector = build_detector(recipe.teacher.native_model, recipe.teacher_spec(), recipe.seed)
    weights = folder / "teacher" / "checkpoints" / "last.safetensors"
    load_detector(weights, detector, recipe.teacher.native_model)
    return detector


def run_lane(folder: Path, runs: list[tuple[str, dict[str, Any] | None, int]]) -> None:
    """The runs of one process."""
    lane = Lane(folder)
    for name, arm, seed in runs:
        result = lane.run(name, arm, seed)
        print(f"{name}-{seed}: mAP {result['mAP']:.4f}, {result['seconds']:.0f} s", flush=True)  # noqa: T201  a script


def measure_sizes(folder: Path, console: Console) -> dict[str, Any]:
    """Parameters, and latency of both networks in PyTorch in turn on one thread."""
    torch.set_num_threads(1)
    loaded = recipe_of(None, 0)
    recipe = loaded.recipe
    student = build_detector(recipe.student.model, recipe.student_spec(), 0)
    networks = {"teacher": load_teacher(folder, loaded), "student": student}
    samples = spread(read_split(recipe, prepare_data(recipe, console), "val", console), _LATENCY_FRAMES)
    drops = DropLog()
    frames = [SensorFrame(*sensors_of(sample, recipe.data.cameras, drops), sample.calibration) for sample in samples]
    backends = {name: TorchDetector(network).timed for name, network in networks.items()}
    measured = measure_latency(backends, frames, rounds=_LATENCY_ROUNDS, warmup_seconds=1.0)
    return {
        name: {
            "parameters": parameter_count(network),
            "latency_ms": measured[name].summary().model_dump(mode="json"),
            "stages_ms": measured[name].stage_medians_ms(),
        }
        for name, network in networks.items()
    }


def run_all(folder: Path, lanes: int, runs: list[tuple[str, dict[str, Any] | None, int]]) -> None:
    """Train what is missing, in processes side by side."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=run_lane, args=(folder, runs[number::lanes])) for number in range(lanes)]
    for lane in started:
        lane.start()
    for lane in started:
        lane.join()
    if any(lane.exitcode for lane in started):
        raise SystemExit("a lane failed; what is finished is kept")


def scan(folder: Path, seed: int, lanes: int) -> None:
    """One term at a time on a logarithmic scale of its weight."""
    weights: dict[str, list[float]] = yaml.safe_load(SCAN.read_text(encoding="utf-8"))
    points = [(term, weight) for term, each in weights.items() for weight in each]
    runs: list[tuple[str, dict[str, Any] | None, int]] = [
        (f"{term} {weight:g}", {"losses": {term: {"weight": weight}}}, seed) for term, weight in points
    ]
    run_all(folder, lanes, runs)
    lane = Lane(folder)  # finds every run finished
    found = [
        {"term": term, "weight": weight, "mAP": lane.run(*run)["mAP"], "NDS": lane.run(*run)["NDS"]}
        for (term, weight), run in zip(points, runs, strict=True)
    ]
    alone = lane.run("alone", None, seed)
    result = {"seed": seed, "environment": collect_environment(), "alone": alone["mAP"], "runs": found}
    write_json(HERE / "scan.json", result)


def main() -> None:
    """Train what is missing, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lanes", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--scan", action="store_true", help="the weights of scan.yaml instead of the arms")
    given = parser.parse_args()
    console = Console()
    teacher_of(given.folder, console)
    if given.scan:
        scan(given.folder, given.seeds[0], given.lanes)
        return
    arms: dict[str, dict[str, Any] | None] = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
    run_all(given.folder, given.lanes, [(name, arm, seed) for seed in given.seeds for name, arm in arms.items()])
    lane = Lane(given.folder)  # finds every run finished
    figures = {name: [lane.run(name, arm, seed) for seed in given.seeds] for name, arm in arms.items()}
    teacher = read_json(given.folder / "teacher" / "eval" / "teacher.json", "teacher evaluation")["present"]
    result = {
        "recipe": RECIPE.name,
        "seeds": given.seeds,
        "environment": collect_environment(),
        "teacher": {"mAP": teacher["mean_ap"], "NDS": teacher["nd_score"]},
        "networks": measure_sizes(given.folder, console),
        "arms": {
            name: {
                "distill": arm,
                **{key: [run[key] for run in figures[name]] for key in ("mAP", "NDS", "seconds")},
            }
            for name, arm in arms.items()
        },
    }
    write_json(HERE / "results.json", result)


if __name__ == "__main__":
    main()
