"""How the preparation of training frames scales with worker processes.

python benchmarks/data/workers.py DATASET

DATASET is a synthetic world (`bevkd data synth DATASET --profile standard --scenes 1 --val-scenes 1`). Frames are read
from JPEG at the size of recipes/orin_small.yaml and augmented as it says. Writes workers.json beside this file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import cv2
import torch

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.loader import frame_loader
from bevkd_deploy.data.sampling import EpochSampler
from bevkd_deploy.data.source import open_split

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes" / "orin_small.yaml"
BATCH_SIZE = 2


def frames_per_second(dataset: FrameDataset, workers: int, batches: int) -> float:
    """Throughput of a running loader: its start and its first batches are not counted."""
    sampler = EpochSampler(len(dataset), seed=0, repeat=1 + (batches + 8) * BATCH_SIZE // len(dataset))
    loader = iter(frame_loader(dataset, sampler, batch_size=BATCH_SIZE, workers=workers))
    for _ in range(8):
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return batches * BATCH_SIZE / (time.perf_counter() - start)


def measure(root: Path, rounds: int, batches: int) -> dict[str, Any]:
    """Median frames a second by number of workers, in interleaved rounds."""
    recipe = load_recipe(RECIPE, []).recipe
    dataset = FrameDataset(
        open_split(DataConfig(source="nuscenes", root=str(root)), root, "train"),
        {"student": recipe.student_spec()},
        target_of="student",
        min_radius_cells=recipe.student.model.head.min_radius_cells,
        augmentation=recipe.student.train.augmentation,
    )
    counts = range(1, (os.cpu_count() or 1) + 1)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            rates[count].append(frames_per_second(dataset, count, batches))
    medians = {count: statistics.median(values) for count, values in rates.items()}
    return {
        "environment": collect_environment(),
        "recipe": RECIPE.name,
        "frames_per_second": medians,
        "rounds": rates,
        "scaling": {count: rate / medians[1] for count, rate in medians.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(write_json(HERE / "workers.json", measure(given.root, given.rounds, given.batches)))  # noqa: T201  a script
