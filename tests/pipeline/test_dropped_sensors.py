"""`data.on_error: drop_sensor` through the command line: the run goes on, and says what it went without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .conftest import RECIPES, SMALL, run_bevkd


def test_a_run_reports_every_sensor_that_it_went_without(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    run_bevkd("data", "synth", "world", "--profile", "tiny", "--scenes", "2", "--val-scenes", "1", cwd=tmp_path)
    splits = json.loads((tmp_path / "world" / "splits.json").read_text())
    images = sorted((tmp_path / "world" / "samples" / "CAM_BACK").glob("*.jpg"))
    clouds = sorted((tmp_path / "world" / "samples" / "LIDAR_TOP").glob("*.bin"))
    assert len(splits["train"]) == 2 and len(images) == len(clouds) == 12  # four frames a scene, the last is val's
    images[0].write_bytes(images[0].read_bytes()[:-9])
    clouds[5].write_bytes(b"")
    images[11].unlink()
    recipe = str(RECIPES / "quickstart.yaml")
    train = ("train", recipe, "--no-distill", *SMALL, "student.train.workers=2", "student.train.cache_sensors=false")

    stopped = bevkd(*train, "--run-dir", "stopped", cwd=tmp_path, code=5)
    assert images[0].name in stopped.err or clouds[5].name in stopped.err

    done = bevkd(*train, "data.on_error=drop_sensor", "--run-dir", "run", cwd=tmp_path)
    log = (tmp_path / "run" / "log.txt").read_text()
    for text in (done.err, log):
        assert "dropped sensors in 2 frames while training the student alone: cameras 1, LiDAR turns 1" in text
        assert "dropped sensors in 1 frame while evaluating the student: cameras 1" in text
        for lost in (images[0], clouds[5], images[11]):
            assert str(lost.relative_to(tmp_path)) in text
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    dropped = {event["sensor"]: event for event in events if event["event"] == "sensor_dropped"}
    assert set(dropped) == {"CAM_BACK", "LIDAR_TOP"}  # once each, in two epochs of two worker processes
    assert sum(event["event"] == "sensor_dropped" for event in events) == 2
    assert images[0].name in dropped["CAM_BACK"]["reason"] and dropped["CAM_BACK"]["kind"] == "camera"
