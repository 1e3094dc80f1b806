"""Pictures of the synthetic world for the documentation: one frame of each difficulty, from the same seed.

python benchmarks/synthetic/frames.py

Writes docs/figures/synthetic_<difficulty>.png: the six cameras with the projected boxes, and the LiDAR from above.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.source import open_split
from bevkd_deploy.data.synthetic import PROFILES, write_dataset
from bevkd_deploy.data.synthetic.profiles import DIFFICULTIES
from bevkd_deploy.pipelines.frame_files import write_frame_files
from bevkd_deploy.report.frame_view import load_frame_view
from bevkd_deploy.report.pictures_cameras import draw_cameras

ROOT = Path(__file__).resolve().parents[2]
HEIGHT_PX = 360
FRAME = 6


def draw(difficulty: str) -> None:
    """Draw one frame, small."""
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml").recipe
    with tempfile.TemporaryDirectory() as folder:
        profile = replace(PROFILES["quickstart"], keyframes=FRAME + 1)
        world = Path(folder) / "world"
        write_dataset(world, profile=profile, difficulty=difficulty, train_scenes=1, val_scenes=0, seed=0)
        sample = open_split(recipe.data, world, "train")[FRAME]
        pictures = Path(folder) / "pictures"
        write_frame_files([sample], recipe.student_spec(), {}, pictures)
        cameras = Path(folder) / "cameras.png"
        draw_cameras(load_frame_view(pictures / f"{sample.token}.json"), cameras, who="truth")
        parts = []
        for path in (cameras, pictures / f"{sample.token}.bev.png"):
            image = np.asarray(cv2.imread(str(path)), dtype=np.uint8)
            width = round(image.shape[1] * HEIGHT_PX / image.shape[0])
            parts.append(cv2.resize(image, (width, HEIGHT_PX), interpolation=cv2.INTER_AREA))
    # Three bits less of each colour make the file a third as large; the eye does not see it.
    picture = np.hstack(parts) // 8 * 8 + 4
    path = ROOT / "docs" / "figures" / f"synthetic_{difficulty}.png"
    assert cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    for name in DIFFICULTIES:
        draw(name)
