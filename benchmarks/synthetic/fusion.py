"""Does fusion matter in the synthetic world? The quickstart's student with both sensors, and with either one alone.

python benchmarks/synthetic/fusion.py runs/fusion --seeds 0 1 2

The three arms are the same network, trained without a teacher for the same steps on the same frames; the sensor that an
arm lacks is missing in every frame (`data.sensors`). Runs that are already finished in the folder are not run again.
Writes fusion.json beside this file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import read_json, write_json

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes" / "quickstart.yaml"
ARMS = ("fusion", "lidar", "camera")


def train(run: Path, arm: str, seed: int) -> dict[str, float]:
    """mAP and NDS of one run, which is made if it is not there."""
    evaluation = run / "eval" / "student.json"
    if not evaluation.is_file():
        settings = [f"data.sensors={arm}", f"seed={seed}"]
        command = ["train", str(RECIPE), "--no-distill", *settings, "--run-dir", str(run)]
        subprocess.run([sys.executable, "-m", "bevkd_deploy.cli.main", *command], check=True)
    present = read_json(evaluation, "evaluation")["present"]
    return {"mAP": present["mean_ap"], "NDS": present["nd_score"]}


def measure(folder: Path, seeds: list[int], jobs: int) -> dict[str, Any]:
    """Train what is missing, `jobs` runs at a time, and collect mAP and NDS of every run."""
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            (arm, seed): pool.submit(train, folder / f"{arm}-{seed}", arm, seed) for seed in seeds for arm in ARMS
        }
        figures = {key: future.result() for key, future in running.items()}
    arms = {arm: {metric: [figures[arm, seed][metric] for seed in seeds] for metric in ("mAP", "NDS")} for arm in ARMS}
    gains = {arm: np.subtract(arms["fusion"]["mAP"], arms[arm]["mAP"]).tolist() for arm in ARMS if arm != "fusion"}
    return {
        "recipe": RECIPE.name,
        "seeds": seeds,
        "environment": collect_environment(),
        "figures": arms,
        "mean_mAP": {arm: float(np.mean(values["mAP"])) for arm, values in arms.items()},
        "std_mAP": {arm: float(np.std(values["mAP"], ddof=1)) for arm, values in arms.items()},
        "gain_of_fusion_mAP": gains,
        "fusion_wins_on_every_seed": bool(min(min(values) for values in gains.values()) > 0),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    given = parser.parse_args()
    write_json(HERE / "fusion.json", measure(given.folder, given.seeds, given.jobs))
