"""The quickstart's student with and without its teacher: same schedule, same data, several seeds.

python benchmarks/distillation/measure.py runs/evidence --seeds 0 1 2

Runs that are already finished in the folder are not run again. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import read_json, write_json

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes" / "quickstart.yaml"
ARMS = {"distilled": ["distill", str(RECIPE)], "alone": ["train", str(RECIPE), "--no-distill"]}


def measure(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Train what is missing and collect mAP and NDS of every run."""
    figures: dict[str, dict[str, list[float]]] = {arm: {"mAP": [], "NDS": []} for arm in ARMS}
    for seed in seeds:
        for arm, command in ARMS.items():
            run = folder / f"{arm}-{seed}"
            if not (run / "eval" / "student.json").is_file():
                arguments = [*command, f"seed={seed}", "--run-dir", str(run)]
                subprocess.run([sys.executable, "-m", "bevkd_deploy.cli.main", *arguments], check=True)
            present = read_json(run / "eval" / "student.json", "evaluation")["present"]
            figures[arm]["mAP"].append(present["mean_ap"])
            figures[arm]["NDS"].append(present["nd_score"])
    gains = np.subtract(figures["distilled"]["mAP"], figures["alone"]["mAP"])
    return {
        "recipe": RECIPE.name,
        "seeds": seeds,
        "environment": collect_environment(),
        "figures": figures,
        "mean_mAP": {arm: float(np.mean(values["mAP"])) for arm, values in figures.items()},
        "std_mAP": {arm: float(np.std(values["mAP"], ddof=1)) for arm, values in figures.items()},
        "gain_mAP": {"mean": float(gains.mean()), "min": float(gains.min()), "max": float(gains.max())},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    write_json(HERE / "results.json", measure(given.folder, given.seeds))
