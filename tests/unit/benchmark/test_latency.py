"""Latency, measured on a clock that the backends themselves move."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.benchmark import latency
from bevkd_deploy.benchmark.latency import (
    LatencySamples,
    SensorFrame,
    detector_backend,
    load_samples,
    measure_latency,
    save_samples,
)
from bevkd_deploy.contracts.errors import ArtifactError, UsageError
from bevkd_deploy.runtime.detector import STAGES, Detector


class Clock:
    """A clock that stands still until a backend works; frames are seconds of work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.calls: list[tuple[str, float]] = []
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now_s)

    def backend(self, name: str, factor: float = 1.0):
        def run(seconds: float) -> None:
            self.calls.append((name, seconds))
            self.now_s += seconds * factor

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_samples_are_milliseconds_by_round_and_frame(clock: Clock) -> None:
    backends = {"slow": clock.backend("slow", 10.0), "fast": clock.backend("fast")}
    samples = measure_latency(backends, [0.001, 0.002, 0.004], rounds=2, warmup_seconds=0)
    np.testing.assert_allclose(samples["fast"].total_ms, [[1, 2, 4]] * 2)
    np.testing.assert_allclose(samples["slow"].total_ms, [[10, 20, 40]] * 2)
    assert samples["fast"].stages_ms == {}


def test_backends_take_turns_and_the_order_reverses(clock: Clock) -> None:
    backends = {"a": clock.backend("a"), "b": clock.backend("b")}
    measure_latency(backends, [0.001, 0.002], rounds=2, warmup_seconds=0)
    # One frame of warm-up each; then per turn one uncounted frame and two counted ones.
    turn = [0.001, 0.001, 0.002]
    assert clock.calls == [
        *[("a", 0.001), ("b", 0.001)],
        *[("a", seconds) for seconds in turn],
        *[("b", seconds) for seconds in turn],
        *[("b", seconds) for seconds in turn],
        *[("a", seconds) for seconds in turn],
    ]


def test_warm_up_lasts_until_the_time_has_passed_and_cycles_the_frames(clock: Clock) -> None:
    measure_latency({"a": clock.backend("a")}, [0.25, 0.5], rounds=1, warmup_seconds=1.0)
    # 0.25 + 0.5 + 0.25 = 1.0: over. Then the turn.
    assert [seconds for _, seconds in clock.calls] == [0.25, 0.5, 0.25, 0.25, 0.25, 0.5]


def test_stages_are_kept_per_sample(clock: Clock) -> None:
    def run(seconds: float) -> dict[str, float]:
        clock.now_s += seconds
        return {"resize": 1e3 * seconds / 4, "engine": 1e3 * seconds / 2}

    samples = measure_latency({"a": run}, [0.004, 0.008, 0.012], rounds=1, warmup_seconds=0)["a"]
    np.testing.assert_allclose(samples.stages_ms["resize"], [[1, 2, 3]])
    assert samples.stage_medians_ms() == pytest.approx({"resize": 2.0, "engine": 4.0})


def test_stages_that_come_and_go_are_refused(clock: Clock) -> None:
    stages = iter([{"a": 1.0}, {"a": 1.0}, {"a": 1.0}, {"b": 1.0}])
    with pytest.raises(UsageError, match="other stages from frame to frame"):
        measure_latency({"x": lambda _: next(stages)}, [0, 1], rounds=1, warmup_seconds=0)


def test_progress_is_told_after_each_turn(clock: Clock) -> None:
    heard: list[tuple[str, int, int]] = []
    measure_latency({"a": clock.backend("a")}, [0.001], 2, 0, lambda *event: heard.append(event))
    assert heard == [("a", 1, 2), ("a", 2, 2)]


@pytest.mark.parametrize(
    ("backends", "frames", "rounds"), [({}, [1], 1), ({"a": print}, [], 1), ({"a": print}, [1], 0)]
)
def test_nothing_to_measure_is_refused(backends, frames, rounds: int) -> None:
    with pytest.raises(UsageError, match="a benchmark needs backends, frames and rounds"):
        measure_latency(backends, frames, rounds, 0)


def test_summary_by_hand() -> None:
    summary = LatencySamples(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])).summary()
    assert (summary.n, summary.mean, summary.min, summary.max) == (6, 4.0, 1.0, 9.0)
    assert summary.cv == pytest.approx(np.sqrt(40 / 6) / 4)  # squared deviations 9 + 4 + 1 + 0 + 1 + 25
    assert summary.p50 == pytest.approx(3.5)
    assert summary.p90 == pytest.approx(7.0)  # halfway between the fifth and the sixth of six
    assert summary.p99 == pytest.approx(8.8)


def test_samples_must_have_rounds_and_frames() -> None:
    with pytest.raises(ArtifactError, match=r"must be \[rounds, frames\], got \[3\]"):
        LatencySamples(np.ones(3))


def test_samples_survive_the_file(tmp_path: Path) -> None:
    engine = LatencySamples(
        np.array([[1.0, 2.0]]), {"resize": np.array([[0.1, 0.2]]), "engine": np.array([[0.5, 0.6]])}
    )
    written = {"tensorrt-fp16": engine, "teacher-fp32": LatencySamples(np.array([[9.0, 8.0]]))}
    read = load_samples(save_samples(tmp_path / "samples.npz", written))
    assert list(read) == list(written)
    np.testing.assert_array_equal(read["teacher-fp32"].total_ms, [[9.0, 8.0]])
    assert list(read["tensorrt-fp16"].stages_ms) == ["resize", "engine"]
    np.testing.assert_array_equal(read["tensorrt-fp16"].stages_ms["engine"], [[0.5, 0.6]])


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_file_without_samples_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="holds no latency samples"):
        load_samples(path)


def test_a_detector_reports_its_stages(artefact: Path, frame: SensorFrame) -> None:
    with Detector.load(artefact) as detector:
        start = time.perf_counter()
        samples = measure_latency({"onnxruntime-fp32": detector_backend(detector)}, [frame], 3, 0)["onnxruntime-fp32"]
        passed_ms = 1e3 * (time.perf_counter() - start)
    assert tuple(samples.stages_ms) == STAGES
    stages = np.sum(list(samples.stages_ms.values()), axis=0)
    assert (stages > 0).all()
    assert (stages <= samples.total_ms).all()  # the whole is measured, not added up
    assert samples.total_ms.sum() < passed_ms
