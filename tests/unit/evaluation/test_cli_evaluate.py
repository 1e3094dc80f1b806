from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bevkd_deploy.cli.evaluate import evaluate
from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.evaluation.config import detection_cvpr_2019
from bevkd_deploy.evaluation.metrics import evaluate as score
from bevkd_deploy.evaluation.submission import write_submission
from bevkd_deploy.report.evaluation import render_evaluation


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(evaluate)
    return app


@pytest.fixture
def files(tmp_path: Path, make_record: Any) -> list[str]:
    truth = {"a": [make_record(), make_record(xy=(9, 0), velocity=[np.nan, np.nan])], "b": []}
    write_submission(tmp_path / "results.json", {"a": [make_record(detection_score=0.9)], "b": []}, {})
    write_submission(tmp_path / "truth.json", truth, {})
    return [str(tmp_path / "results.json"), "--ground-truth", str(tmp_path / "truth.json")]


def test_table_on_stdout_and_notes_on_stderr(app: typer.Typer, files: list[str]) -> None:
    outcome = CliRunner().invoke(app, files)
    assert outcome.exit_code == 0, outcome.output
    # One of two cars found, nothing else there: recall stops at one half, and only that class counts.
    average_precision = 40 / 90
    assert f"mAP {average_precision / 10:.4f}" in outcome.stdout
    car = next(line for line in outcome.stdout.splitlines() if " car " in line)
    assert f"{average_precision:.4f}" in car
    cone = next(line for line in outcome.stdout.splitlines() if "traffic_cone" in line)
    assert cone.count(" - ") == 3
    assert "class range" in outcome.stderr and "num_pts" in outcome.stderr and "--json" in outcome.stderr
    assert "class range" not in outcome.stdout


def test_json_holds_the_devkit_keys_and_is_json(
    app: typer.Typer, files: list[str], tmp_path: Path, make_record: Any
) -> None:
    outcome = CliRunner().invoke(app, [*files, "--json", str(tmp_path / "figures.json")])
    assert outcome.exit_code == 0 and "figures.json" in outcome.stderr.replace("\n", "")
    figures = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    truth = {"a": [make_record(), make_record(xy=(9, 0))], "b": []}
    expected = score({"a": [make_record(detection_score=0.9)], "b": []}, truth)
    assert set(figures) == set(expected)
    assert figures["nd_score"] == expected["nd_score"]
    assert figures["label_aps"]["car"]["0.5"] == expected["label_aps"]["car"][0.5]
    assert figures["label_tp_errors"]["barrier"]["vel_err"] is None


def test_errors_are_left_to_the_app(app: typer.Typer, files: list[str], tmp_path: Path) -> None:
    write_submission(tmp_path / "results.json", {"a": []}, {})
    outcome = CliRunner().invoke(app, files)
    assert isinstance(outcome.exception, DataError) and "1 missing from the results (b)" in str(outcome.exception)


def _invoke(app: typer.Typer, *arguments: str) -> Any:
    outcome = CliRunner().invoke(app, list(arguments))
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome


@pytest.fixture
def scenes(tmp_path: Path, make_record: Any) -> list[str]:
    """Three scenes of two frames; in the last one the results see nothing, the other results see it."""
    truth = {f"t{index}": [make_record(f"t{index}"), make_record(f"t{index}", (9, 0))] for index in range(6)}
    names = {token: f"scene-{index // 2}" for index, token in enumerate(truth)}
    empty: dict[str, list[Any]] = {"t4": [], "t5": []}
    write_submission(tmp_path / "truth.json", truth, {"scenes": names}, bike_racks={})
    write_submission(tmp_path / "results.json", {**truth, **empty}, {})
    write_submission(tmp_path / "other.json", truth, {})
    return [str(tmp_path / "results.json"), "--ground-truth", str(tmp_path / "truth.json")]


def test_scenes_are_chosen_by_name(app: typer.Typer, scenes: list[str], tmp_path: Path) -> None:
    cars = {"scene-0, scene-1": 1.0, "scene-2": 0.0}
    for names, expected in cars.items():
        _invoke(app, *scenes, "--scenes", names, "--json", str(tmp_path / "figures.json"))
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert figures["mean_dist_aps"]["car"] == pytest.approx(expected)
    outcome = CliRunner().invoke(app, [*scenes, "--scenes", "scene-0,scene-9"])
    assert isinstance(outcome.exception, UsageError) and "no scene 'scene-9'; it has scene-0" in str(outcome.exception)


def test_results_of_the_chosen_scenes_alone_are_enough(
    app: typer.Typer, scenes: list[str], tmp_path: Path, make_record: Any
) -> None:
    some = {token: [make_record(token)] for token in ("t1", "t0")}
    write_submission(tmp_path / "results.json", some, {})
    _invoke(app, *scenes, "--scenes", "scene-0")
    write_submission(tmp_path / "results.json", {**some, "unknown": []}, {})
    outcome = CliRunner().invoke(app, [*scenes, "--scenes", "scene-0"])
    assert isinstance(outcome.exception, DataError) and "1 not in the ground truth (unknown)" in str(outcome.exception)


def test_scenes_need_their_names_in_the_ground_truth(app: typer.Typer, files: list[str]) -> None:
    outcome = CliRunner().invoke(app, [*files, "--scenes", "scene-0"])
    assert isinstance(outcome.exception, UsageError) and "meta.scenes" in str(outcome.exception)


def test_settings_come_from_a_file(app: typer.Typer, scenes: list[str], tmp_path: Path) -> None:
    config = {**detection_cvpr_2019().serialize(), "class_range": {"car": 30}, "dist_ths": [2.0]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = [*scenes, "--config", str(tmp_path / "config.json")]
    _invoke(app, *arguments, "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["cfg"] == config and list(figures["label_aps"]) == ["car"]
    for wrong in ({**config, "dist_ths": [1.0]}, {"class_range": {}}, []):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        assert isinstance(CliRunner().invoke(app, arguments).exception, UsageError)


def test_the_difference_to_a_second_result_has_intervals(app: typer.Typer, scenes: list[str], tmp_path: Path) -> None:
    more = ["--against", str(tmp_path / "other.json"), "--replicates", "40", "--json", str(tmp_path / "figures.json")]
    outcome = _invoke(app, *scenes, *more)
    difference = json.loads((tmp_path / "figures.json").read_text())["difference"]
    car = difference["figures"]["AP car"]
    assert (difference["units"], difference["unit"], difference["replicates"]) == (3, "scene", 40)
    assert car["second"] - car["first"] == car["difference"] < 0 and car["low"] <= car["difference"] <= car["high"]
    assert f"{car['difference']:+.4f}" in outcome.stdout and "over 3 scenes, 40 draws, seed 0" in outcome.stdout
    assert "3 scenes are few" in outcome.stderr and "single frames" not in outcome.stderr


def test_frames_stand_in_for_unknown_scenes_with_a_warning(app: typer.Typer, files: list[str]) -> None:
    outcome = _invoke(app, *files, "--against", files[0], "--replicates", "5")
    assert "the bootstrap draws single frames" in outcome.stderr and "2 frames are few" in outcome.stderr


def test_curves_and_report_are_written(app: typer.Typer, scenes: list[str], tmp_path: Path) -> None:
    curves, page = tmp_path / "curves.json", tmp_path / "page.html"
    _invoke(app, *scenes, "--curves", str(curves), "--report", str(page))
    content = json.loads(curves.read_text())
    assert content["schema"] == "bevkd.curves/1" and content["frames"] == 6 and content["title"] == "results.json"
    car = content["classes"]["car"]
    assert car["truths"] == 12 and car["predictions"] == 8
    assert car["precision"]["0.5"][66] == 1 and car["precision"]["0.5"][67] == 0
    assert content["summary"]["filters"] == {"class_range": False, "num_pts": False, "bike_racks": True}
    assert page.read_text() == render_evaluation(content)
