from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bevkd_deploy.cli.evaluate import evaluate
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.evaluation.metrics import evaluate as score
from bevkd_deploy.evaluation.submission import write_submission


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
