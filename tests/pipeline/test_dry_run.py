"""`bevkd distill RECIPE --dry-run`: the table of taps, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevkd_deploy.data.synthetic import write_dataset

from .conftest import RECIPES, SMALL

QUICKSTART = (str(RECIPES / "quickstart.yaml"), "--dry-run", *SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that has the data."""
    made = tmp_path_factory.mktemp("dry")
    write_dataset(made / "world", profile="tiny", train_scenes=2, val_scenes=1, seed=0)
    return made


def taps_of(out: str) -> dict[tuple[str, str, str], str]:
    """Rest of each line of the table by (loss, network, tap)."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    return {(row[0], row[1], row[2]): " ".join(row[3:]) for row in rows if row[1:2] in (["student"], ["teacher"])}


def test_one_frame_of_the_data_is_looked_at(folder: Path, bevkd: Callable[..., Any]) -> None:
    attention = "distill.losses.attention={student: 'pts_backbone[1]', teacher: 'pts_backbone[0]'}"
    losses = (attention, "distill.losses.contrast={}")
    done = bevkd("distill", *QUICKSTART, *losses, cwd=folder)
    text = done.err + done.out
    assert re.search(r"one forward pass on frame \w+ of the training split", text)
    assert "teacher with weights of quickstart_teacher.safetensors, untrained student" in text
    rows = taps_of(text)
    grid = "yx x -40..40 m, y -40..40 m, cell 1 m"
    assert list(rows) == [
        (loss, network, tap)
        for loss, taps in {
            "heatmap": ("output[heatmap]", "output[heatmap]"),
            "feature": ("pts_neck", "pts_neck"),
            "attention": ("pts_backbone[1]", "pts_backbone[0]"),
            "contrast": ("pts_neck", "pts_neck"),
        }.items()
        for network, tap in zip(("student", "teacher"), taps, strict=True)
    ]
    number = r"-?\d[\d.e-]*"
    for (loss, network, _), row in rows.items():
        shape = {
            ("attention", "student"): "1x64x40x40",
            ("attention", "teacher"): "1x64x80x80",
            ("heatmap", "student"): "1x10x80x80",
            ("heatmap", "teacher"): "1x10x80x80",
        }.get((loss, network), "1x64x80x80" if network == "student" else "1x128x80x80")
        expected = grid.replace("cell 1", "cell 2") if (loss, network) == ("attention", "student") else grid
        assert re.fullmatch(rf"{shape} float32 {number} \.\. {number} {re.escape(expected)}", row), row
    assert {path.name for path in folder.iterdir()} == {"world"}  # nothing was written


def test_without_data_it_says_that_it_looks_at_noise(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    done = bevkd("distill", *QUICKSTART, cwd=tmp_path)
    text = done.err + done.out
    assert "one forward pass on noise, as there are no frames yet" in text
    assert ("feature", "teacher", "pts_neck") in taps_of(text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("feature.student=pts_nek", "tap 'pts_nek': the student has no module 'pts_nek'. Did you mean 'pts_neck'?"),
        ("feature.teacher=pts_backbone", "gives a list of length 2, not a tensor: add a step such as pts_backbone[0]"),
        ("attention.student=pts_backbone.blocks.*", "so its count must be given. It matches 2 in the student"),
        (
            "attention={student: pts_backbone.blocks.*, teacher: pts_backbone.blocks.*, count: 3}",
            "must match 3, but matches 2 in the student: pts_backbone.blocks.0, pts_backbone.blocks.1",
        ),
        ("feature.student=img_neck", "student tap 'img_neck' is a map of the camera branch"),
        ("feature.teacher_layout={cell_m: 0.5}", "has cells of 1 m, but its layout declares cell_m 0.5"),
    ],
)
def test_what_does_not_fit_ends_with_exit_code_2(
    folder: Path, bevkd: Callable[..., Any], override: str, message: str
) -> None:
    done = bevkd("distill", *QUICKSTART, f"distill.losses.{override}", cwd=folder, code=2)
    assert message in done.err, done.err
    assert "Traceback" not in done.err
    assert {path.name for path in folder.iterdir()} == {"world"}


def test_training_fails_at_a_tap_before_the_teacher_costs_anything(folder: Path, bevkd: Callable[..., Any]) -> None:
    run = folder / "run"
    done = bevkd(
        "distill", QUICKSTART[0], *SMALL, "distill.losses.feature.student=pts_nek", "--run-dir", str(run),
        cwd=folder, code=2,
    )  # fmt: skip
    assert "Did you mean 'pts_neck'?" in done.err
    assert not (run / "eval").exists() and not (run / "events.jsonl").exists()
    assert "teacher" not in done.err.split("error:")[0]  # neither trained nor evaluated
