"""Batches from worker processes, also where this process has used OpenCV's threads before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# In a process of its own, with a limit: the failure that this guards against is a worker that hangs.
PROGRAM = """
import sys, time
from pathlib import Path
import cv2, numpy as np
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.loader import frame_loader
from bevkd_deploy.data.sampling import EpochSampler
from bevkd_deploy.data.source import open_split

cv2.setNumThreads(4)
for _ in range(20):  # starts OpenCV's pool
    cv2.GaussianBlur(cv2.resize(np.zeros((900, 1600, 3), np.uint8), (2000, 1800)), (0, 0), 3)
recipe = load_recipe("quickstart").recipe
dataset = FrameDataset(
    open_split(recipe.data, Path(sys.argv[1]), "train"), {"student": recipe.student_spec()},
    target_of="student", min_radius_cells=1,
)
here = [dataset[index]["token"] for index in range(4)]
time.sleep(1)  # until its threads wait
for workers in (0, 2):
    loader = frame_loader(dataset, EpochSampler(4, seed=0), batch_size=2, workers=workers)
    assert sorted(token for batch in loader for token in batch["token"]) == sorted(here)
print(cv2.getNumThreads())
"""


def test_workers_run_after_this_process_has_used_opencv(tiny_world: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_world)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"]
