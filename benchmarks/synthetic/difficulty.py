"""What the difficulties of the synthetic world do, in numbers, and what they cost one trained network.

python benchmarks/synthetic/difficulty.py runs/difficulty runs/fusion/fusion-0 runs/fusion/fusion-1 runs/fusion/fusion-2

Writes a validation world of each difficulty into the folder (unless it is there) and evaluates students trained on the
normal one (runs of benchmarks/synthetic/fusion.py) on each. Writes difficulty.json beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import read_json, write_json
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.source import open_split
from bevkd_deploy.data.synthetic import write_dataset
from bevkd_deploy.data.synthetic.profiles import DIFFICULTIES
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.training import evaluate_detector

HERE = Path(__file__).resolve().parent
VERSION = "v1.0-trainval"


def statistics(root: Path, samples: list[Sample]) -> dict[str, float]:
    """Objects, points and visibility of a split."""
    tokens = {sample.token for sample in samples}
    annotations = read_json(root / VERSION / "sample_annotation.json", "annotations")
    levels = np.array([int(row["visibility_token"]) for row in annotations if row["sample_token"] in tokens])
    points = np.concatenate([sample.num_points for sample in samples])
    distance = np.concatenate([np.hypot(sample.boxes[:, 0], sample.boxes[:, 1]) for sample in samples])
    seen = points > 0
    return {
        "objects_per_frame": len(points) / len(samples),
        "objects_with_points_per_frame": float(seen.sum()) / len(samples),
        "median_points_per_seen_object": float(np.median(points[seen])),
        "share_seen_below_40_percent": float((levels == 1).mean()),
        "farthest_object_m": float(distance.max()),
    }


def measure(folder: Path, runs: list[Path]) -> dict[str, Any]:
    """Statistics of each world and mAP and NDS of each run on it."""
    console = Console(stderr=True)
    loaded = [load_recipe(run / "recipe.resolved.yaml").recipe for run in runs]
    settings = loaded[0].data.synthetic
    assert settings is not None
    result: dict[str, Any] = {}
    for name in DIFFICULTIES:
        root = folder / name
        if not root.is_dir():
            write_dataset(
                root,
                profile=settings.profile,
                difficulty=name,
                train_scenes=1,
                val_scenes=settings.val_scenes,
                seed=settings.seed,
            )
        samples = open_split(loaded[0].data, root, "val")
        scores = []
        for run, recipe in zip(runs, loaded, strict=True):
            detector = build_detector(recipe.student.model, recipe.student_spec(), recipe.seed)
            load_detector(run / "checkpoints" / "last.safetensors", detector, recipe.student.model, None)
            scores.append(evaluate_detector(detector, samples, console, f"{run.name} on {name}")["present"])
        result[name] = {
            **statistics(root, samples),
            "mAP": [score["mean_ap"] for score in scores],
            "NDS": [score["nd_score"] for score in scores],
        }
    return {"environment": collect_environment(), "runs": [run.name for run in runs], "difficulties": result}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    write_json(HERE / "difficulty.json", measure(given.folder, given.runs))
