from __future__ import annotations

import json
from pathlib import Path

import pytest

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.report.training_log import read_curves


def write(path: Path, *events: object, tail: str = "") -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + tail, encoding="utf-8")
    return path


def test_terms_and_their_sum(tmp_path: Path) -> None:
    log = write(
        tmp_path / "events.jsonl",
        {"event": "start"},
        {"event": "step", "step": 10, "losses": {"heatmap_loss": 3.0, "box_loss": 1.0}},
        {"event": "step", "step": 20, "losses": {"heatmap_loss": 2.0, "box_loss": 0.5}},
        # A resumed run logs a step again.
        {"event": "step", "step": 20, "losses": {"heatmap_loss": 2.5, "box_loss": 0.5}},
    )
    (curves,) = read_curves(log)
    assert curves.stage == "training"
    found = {name: (steps.tolist(), values.tolist()) for name, (steps, values) in curves.series.items()}
    assert found == {"heatmap": ([10, 20], [3.0, 2.5]), "box": ([10, 20], [1.0, 0.5]), "total": ([10, 20], [4.0, 3.0])}


def test_stages_are_kept_apart(tmp_path: Path) -> None:
    events = [{"stage": stage, "step": 1, "losses": {"a": 1}} for stage in ("teacher", "distill")]
    assert [curves.stage for curves in read_curves(write(tmp_path / "e.jsonl", *events))] == ["teacher", "distill"]


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    log = write(tmp_path / "e.jsonl", {"step": 1, "losses": {"a": 1.0}}, tail='{"step": 2, "lo')
    assert read_curves(log)[0].series["a"][0].tolist() == [1]


def test_damage_elsewhere_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "e.jsonl"
    log.write_text('{"step":\n{"step": 1, "losses": {}}\n', encoding="utf-8")
    with pytest.raises(ArtifactError, match="line 1 is not JSON"):
        read_curves(log)
    with pytest.raises(ArtifactError, match="not found"):
        read_curves(tmp_path / "none.jsonl")
