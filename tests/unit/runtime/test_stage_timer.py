"""The stopwatch, on a clock that is set by hand."""

from __future__ import annotations

import pytest

from bevkd_deploy.runtime import stage_timer
from bevkd_deploy.runtime.stage_timer import StageTimer


def test_each_lap_is_the_time_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    readings_s = iter([10.0, 10.002, 10.007])
    monkeypatch.setattr(stage_timer.time, "perf_counter", lambda: next(readings_s))
    timer = StageTimer()
    timer.lap("resize")
    timer.lap("engine")
    assert timer.stages_ms == pytest.approx({"resize": 2.0, "engine": 5.0})
