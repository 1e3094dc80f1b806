"""docs/synthetic.md shows the committed measurements, and these show what the page claims."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import pytest

from bevkd_deploy.contracts.files import read_json
from bevkd_deploy.data.synthetic.profiles import DIFFICULTIES, Difficulty

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "benchmarks" / "synthetic"
PAGE = ROOT / "docs" / "synthetic.md"


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(MEASURED / f"{name}.json", "result")
    assert found["environment"]["commit"]
    return found


def test_the_tables_are_those_of_the_result_files() -> None:
    publish = runpy.run_path(str(MEASURED / "publish.py"))
    text = PAGE.read_text(encoding="utf-8")
    assert publish["page_with_tables"](text) == text, "run: python benchmarks/synthetic/publish.py"


def test_fusion_beats_both_sensors_on_every_seed() -> None:
    measured = result("fusion")
    assert len(measured["seeds"]) >= 3
    assert measured["fusion_wins_on_every_seed"] is True
    for arm in ("lidar", "camera"):
        pairs = zip(measured["figures"]["fusion"]["mAP"], measured["figures"][arm]["mAP"], strict=True)
        assert all(fusion > alone for fusion, alone in pairs)


def test_one_core_writes_ten_frames_a_second() -> None:
    for profile in ("quickstart", "standard"):
        assert result("speed")["profiles"][profile]["normal"]["frames_per_processor_s"] >= 10


def test_harder_worlds_are_harder() -> None:
    easy, normal, hard = (result("difficulty")["difficulties"][name] for name in DIFFICULTIES)
    for better, worse in ((easy, normal), (normal, hard)):
        assert all(a > b for a, b in zip(better["mAP"], worse["mAP"], strict=True))
        assert better["share_seen_below_40_percent"] < worse["share_seen_below_40_percent"]


def test_the_page_lists_every_number_of_a_difficulty() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Difficulty")[1].split("<!--")[0]
    rows = [row.split("|")[2:5] for row in re.findall(r"^\|.*\|$", table, re.MULTILINE)[2:]]
    assert len(rows) == len(fields(Difficulty)) - 1  # all but the name
    for row, field in zip(rows, fields(Difficulty)[1:], strict=True):
        for cell, difficulty in zip(row, DIFFICULTIES.values(), strict=True):
            value = getattr(difficulty, field.name)
            scale = 100.0 if "%" in cell else 1.0
            written = [float(number) for number in re.findall(r"[\d.]+", cell)]
            assert written == pytest.approx([scale * n for n in (value if isinstance(value, tuple) else (value,))])


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_pictures_are_small_and_whole(difficulty: str) -> None:
    path = ROOT / "docs" / "figures" / f"synthetic_{difficulty}.png"
    assert path.stat().st_size < 300_000
    image = cv2.imread(str(path))
    assert image is not None and image.shape[0] == 360 and image.std() > 20
