"""`bevkd data synth` and `bevkd data check` on a tiny world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bevkd_deploy.cli.main import app
from bevkd_deploy.contracts.errors import FindingsError, UsageError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset written by the command itself."""
    dest = tmp_path_factory.mktemp("synth") / "world"
    done = RUNNER.invoke(
        app,
        ["data", "synth", str(dest), "--scenes", "1", "--val-scenes", "1", "--seed", "5", "--profile", "tiny"]
        + ["--difficulty", "hard"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{dest}\n"
    assert f"Next: bevkd data check {dest}" in done.stderr
    return dest


def test_synth_writes_what_was_asked_for(dataset: Path) -> None:
    made = json.loads((dataset / "dataset.json").read_text())
    assert (made["profile"]["name"], made["scenes"], made["seed"]) == ("tiny", {"train": 1, "val": 1}, 5)
    assert made["profile"]["difficulty"]["name"] == "hard"


def test_synth_refuses_an_unknown_difficulty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown difficulty: got 'insane', expected one of easy, normal, hard"):
        RUNNER.invoke(app, ["data", "synth", str(tmp_path / "x"), "--difficulty", "insane"], catch_exceptions=False)


def test_synth_refuses_an_unknown_profile(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown synthetic profile"):
        RUNNER.invoke(app, ["data", "synth", str(tmp_path / "x"), "--profile", "huge"], catch_exceptions=False)


def test_a_sound_dataset_is_complete(dataset: Path) -> None:
    done = RUNNER.invoke(app, ["data", "check", str(dataset)], catch_exceptions=False)
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"{dataset}: complete" in done.stderr


def test_a_truncated_sweep_is_found(dataset: Path) -> None:
    sweep = sorted((dataset / "samples" / "LIDAR_TOP").iterdir())[0]
    whole = sweep.read_bytes()
    sweep.write_bytes(whole[:-3])
    try:
        done = RUNNER.invoke(app, ["data", "check", str(dataset)])
    finally:
        sweep.write_bytes(whole)
    assert isinstance(done.exception, FindingsError)
    assert done.exception.exit_code == 1
    assert str(done.exception) == f"{dataset}: 1 finding (points 1)"
    assert done.stdout.count("\n") == 1
    assert sweep.name in done.stdout
