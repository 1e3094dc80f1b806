"""Distilling from a BEVFusion checkpoint through the command line, on the synthetic world, with a small grid."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.data.synthetic import write_dataset
from bevkd_deploy.models.bevfusion.detector import BevFusion

from .conftest import RECIPES, SMALL

QUICKSTART = str(RECIPES / "quickstart.yaml")
#: Not square, and smaller than the student's range.
GEOMETRY = {
    "image_size_px": [64, 160], "image_scale": 0.5, "range_m": [-9.6, -14.4, -5.0, 14.4, 9.6, 3.0],
    "depth_m": [1.0, 21.0], "proposals": 20,
}  # fmt: skip
TEACHER = f"teacher={{source: bevfusion, checkpoint: FOLDER/bevfusion.pth, geometry: {json.dumps(GEOMETRY)}}}"
#: Without the recipe's own teacher there is nothing to expect of it.
SETTINGS = tuple(item for item in SMALL if not item.startswith(("teacher.", "student.train.epochs")))
LOSSES = "distill={losses: {heatmap: {weight: 10, beyond_truth: 1}, feature: {weight: 30}}, labels: {min_score: 0.02}}"
HEAD_ONLY = "distill={losses: {heatmap: {weight: 10, beyond_truth: 1}}, labels: {min_score: 0.02}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the data and a checkpoint as mmengine writes one."""
    made = tmp_path_factory.mktemp("foreign")
    write_dataset(made / "world", profile="tiny", train_scenes=2, val_scenes=1, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BevFusion(BevFusionGeometry.model_validate_json(json.dumps(GEOMETRY)), "swin_t")
    torch.save({"state_dict": network.state_dict(), "meta": {"epoch": 6}}, made / "bevfusion.pth")
    return made


def teacher_of(folder: Path, *more: str, text: str = TEACHER) -> str:
    """The override; a recipe gives paths relative to its own file."""
    return text.replace("FOLDER", str(folder)).replace("source:", f"{''.join(f'{item}, ' for item in more)}source:")


def events(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.slow
def test_a_bevfusion_checkpoint_teaches(folder: Path, bevkd: Callable[..., Any]) -> None:
    schedule = ("student.train.epochs=5", "student.train.learning_rate=0.008")
    done = bevkd(
        "distill", QUICKSTART, *SETTINGS, teacher_of(folder), LOSSES, *schedule, "--run-dir", "run", cwd=folder
    )
    assert "mmdet3d's BEVFusion, cameras (Swin-T) and LiDAR" in done.err
    assert f"teacher {folder}/bevfusion.pth: mAP" in done.err
    report = json.loads((folder / "run" / "teacher_checkpoint.json").read_text())
    assert report["counts"]["loaded"] + report["counts"]["computed"] == 582
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    assert report["sha256"] in json.dumps(manifest)
    steps = events(folder / "run")
    for term, at_most in (("heatmap", 0.8), ("feature", 0.95)):
        raw = [step["raw"][term] for step in steps]
        assert raw[-1] < at_most * raw[0], (term, raw)
    assert (folder / "run" / "checkpoints" / "last.safetensors").is_file()
    assert json.loads((folder / "run" / "eval" / "teacher.json").read_text())["present"]["mean_ap"] >= 0


@pytest.mark.slow
def test_what_the_teacher_says_is_stored_once(folder: Path, bevkd: Callable[..., Any]) -> None:
    given = (QUICKSTART, *SETTINGS, teacher_of(folder, "cache: fp16"), HEAD_ONLY, "student.train.epochs=2")
    first = bevkd("teacher", "cache", *given, cwd=folder)
    stored = Path(first.out.strip())
    assert list((folder / stored).glob("maps-*.safetensors")) and (folder / stored / "key.json").is_file()
    again = bevkd("teacher", "cache", *given, cwd=folder)
    assert again.out == first.out
    files = sorted((folder / stored).iterdir())
    bevkd("distill", *given, "--run-dir", "cached", cwd=folder)
    assert sorted((folder / stored).iterdir()) == files  # nothing was asked of the teacher again


def test_nothing_to_store_is_an_error(folder: Path, bevkd: Callable[..., Any]) -> None:
    done = bevkd("teacher", "cache", QUICKSTART, *SETTINGS, teacher_of(folder), HEAD_ONLY, cwd=folder, code=2)
    assert "keeps nothing of its teacher: add teacher.cache=fp16" in done.err


ONE_LINE = "teacher={source: bevfusion, checkpoint: FOLDER/bevfusion.pth}"
MMDET3D = "teacher={source: mmdet3d, config: FOLDER/a.py, checkpoint: FOLDER/bevfusion.pth}"


@pytest.mark.parametrize(
    ("text", "more", "code", "message"),
    [
        (TEACHER.replace("bevfusion.pth", "other.pth"), (), 5, "teacher checkpoint not found"),
        (TEACHER, (f"sha256: '{'0' * 64}'",), 5, "the recipe expects 0000"),
        (ONE_LINE, (), 5, "teacher.geometry"),
        (TEACHER, ("expect: {mAP: 0.9}",), 5, "is weaker than teacher.expect says"),
        (MMDET3D, (), 4, "mmdet3d, which runs this teacher"),
    ],
    ids=["missing", "hash", "grid", "weak", "mmdet3d"],
)
def test_a_teacher_that_does_not_fit_stops_the_run(
    folder: Path, bevkd: Callable[..., Any], text: str, more: tuple[str, ...], code: int, message: str
) -> None:
    if message.startswith("mmdet3d") and importlib.util.find_spec("mmdet3d"):
        pytest.skip("mmdet3d is installed here")
    (folder / "a.py").touch()
    done = bevkd(
        "distill", QUICKSTART, *SETTINGS, teacher_of(folder, *more, text=text), HEAD_ONLY, cwd=folder, code=code
    )
    assert message in done.err
    assert "Traceback" not in done.err
