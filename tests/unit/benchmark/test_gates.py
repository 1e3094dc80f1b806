"""Gates on hand-made results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bevkd_deploy.benchmark.gates import bootstrap_interval, device_matches, evaluate_gates, gate_error
from bevkd_deploy.benchmark.latency import LatencySamples
from bevkd_deploy.benchmark.result import Accuracy, BackendResult, Bench, GateResult
from bevkd_deploy.contracts.errors import GateFailed, UnstableMeasurement, UsageError
from bevkd_deploy.contracts.recipe import GateConfig
from bevkd_deploy.contracts.sidecar import ParityRow

CPU = "AMD EPYC (CPU)"
RTX = "NVIDIA GeForce RTX 4090"


def make_samples(*round_ms: float, frames: int = 4) -> LatencySamples:
    """Rounds in which every frame took the same time."""
    return LatencySamples(np.repeat(np.array(round_ms)[:, None], frames, axis=1))


def make_row(
    name: str, precision: str = "fp32", samples: LatencySamples | None = None, **changes: Any
) -> BackendResult:
    fields: dict[str, Any] = {"name": name, "precision": precision, "device": CPU}
    return BackendResult(**{**fields, "latency_ms": samples.summary() if samples else None, **changes})


def make_parity(nonfinite: int = 0, rel_l2: float = 0.01, tier: str = "fp16") -> ParityRow:
    return ParityRow(
        reference="student-torch",
        candidate="onnxruntime",
        tier=tier,
        output="boxes",
        max_abs=0.1,
        rel_l2=rel_l2,
        cosine=0.99,
        nonfinite=nonfinite,
        result="fail" if nonfinite else "pass",
    )


def decide(
    gate: Mapping[str, Any],
    rows: list[BackendResult],
    samples: Mapping[str, LatencySamples] | None = None,
    require: tuple[str, ...] = (),
    parity: tuple[ParityRow, ...] = (),
) -> GateResult:
    bench = Bench(environment={}, frames=4, boundary="all", backends=tuple(rows), parity=parity)
    config = GateConfig(**{"name": "gate", **gate})
    (result,) = evaluate_gates([config], bench, samples or {}, require)
    return result


TEACHER = make_row("teacher", accuracy=Accuracy(mAP=0.60, NDS=0.65))
ENGINE = make_row(
    "onnxruntime", "fp16", engine="a.onnx", engine_sha256="0" * 64, size_mb=3.0, accuracy=Accuracy(mAP=0.57, NDS=0.64)
)


@pytest.mark.parametrize(
    ("gate", "value", "limit", "result"),
    [
        ({"metric": "mAP", "min": 0.57}, 0.57, ">= 0.57", "pass"),
        ({"metric": "mAP", "min": 0.58}, 0.57, ">= 0.58", "fail"),
        ({"metric": "NDS", "of": "teacher", "min": 0.6}, 0.65, ">= 0.6", "pass"),
        ({"metric": "mAP", "vs": "teacher", "min_ratio": 0.95}, 0.95, ">= 0.95 x teacher", "pass"),
        ({"metric": "mAP", "vs": "teacher", "min_ratio": 0.96}, 0.95, ">= 0.96 x teacher", "fail"),
        ({"metric": "mAP", "vs": "teacher", "max_drop": 0.031}, 0.03, "<= 0.031 below teacher", "pass"),
        ({"metric": "mAP", "vs": "teacher", "max_drop": 0.02}, 0.03, "<= 0.02 below teacher", "fail"),
        ({"metric": "size_mb", "max": 2.9}, 3.0, "<= 2.9", "fail"),
        ({"metric": "size_mb", "of": "onnxruntime-fp16", "max": 3.0}, 3.0, "<= 3", "pass"),
    ],
)
def test_a_number_decides(gate: dict[str, Any], value: float, limit: str, result: str) -> None:
    got = decide(gate, [TEACHER, ENGINE])
    assert got.value == pytest.approx(value)
    assert (got.limit, got.result, got.interval) == (limit, result, None)


@pytest.mark.parametrize(
    ("round_ms", "limit", "result"),
    [
        ((10.0, 11.0, 12.0), 13.0, "pass"),
        ((10.0, 11.0, 12.0), 9.0, "fail"),
        ((10.0, 11.0, 12.0), 11.5, "unstable"),  # the median is below, but one round of three is above
        ((11.0,), 11.5, "pass"),  # one round has no interval: its value decides
    ],
)
def test_latency_with_its_interval(round_ms: tuple[float, ...], limit: float, result: str) -> None:
    samples = make_samples(*round_ms)
    row = make_row("onnxruntime", samples=samples, engine="a.onnx", engine_sha256="0" * 64)
    got = decide({"metric": "latency_p50_ms", "max": limit}, [row], {row.key: samples})
    assert got.result == result
    assert got.value == 11.0
    assert got.interval == ((10.0, 12.0) if len(round_ms) > 1 else None)


@pytest.mark.parametrize(
    ("limit", "result"), [(0.6, "pass"), (0.4, "fail"), (0.5, "pass")], ids=["slack", "short", "exact"]
)
def test_a_ratio_is_paired_by_round(limit: float, result: str) -> None:
    # Both backends slow down together, by half from the first round to the last: their ratio never moves.
    teacher_samples, engine_samples = make_samples(20.0, 24.0, 30.0), make_samples(10.0, 12.0, 15.0)
    teacher = make_row("teacher", samples=teacher_samples)
    engine = make_row("onnxruntime", samples=engine_samples, engine="a.onnx", engine_sha256="0" * 64)
    gate = {"metric": "latency_p50_ms", "vs": "teacher", "max_ratio": limit}
    got = decide(gate, [teacher, engine], {teacher.key: teacher_samples, engine.key: engine_samples})
    assert got.result == result
    assert got.interval == pytest.approx((0.5, 0.5))


def test_a_drop_of_latency_has_an_interval_too() -> None:
    teacher_samples, engine_samples = make_samples(20.0, 24.0, 30.0), make_samples(10.0, 12.0, 15.0)
    interval = bootstrap_interval(engine_samples, 50, teacher_samples, drop=True)
    assert interval == pytest.approx((10.0, 15.0))


def test_the_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    samples = LatencySamples(rng.gamma(20, 0.5, (5, 30)) * np.array([1.0, 1.1, 1.3, 1.6, 2.0])[:, None])
    got = bootstrap_interval(samples, 90)
    reference = stats.bootstrap(
        (np.arange(5),),
        lambda rounds: np.percentile(samples.total_ms[rounds.astype(int)], 90),
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    # Two random resamplings of one distribution, so their ends differ by a little of its width.
    assert got is not None
    width = reference.high - reference.low
    assert width > 5
    assert got == pytest.approx((reference.low, reference.high), abs=0.02 * width)
    assert bootstrap_interval(samples, 90) == got  # and ours is the same every time


@pytest.mark.parametrize(
    ("gate", "rows", "reason"),
    [
        ({"metric": "mAP", "min": 0.1}, [TEACHER], "no row 'engine' in this benchmark; it has teacher-fp32"),
        ({"metric": "mAP", "vs": "tensorrt", "min_ratio": 0.9}, [ENGINE], "no row 'tensorrt'"),
        ({"metric": "latency_p99_ms", "max": 5}, [ENGINE], "onnxruntime-fp16 has no latency_p99_ms"),
        (
            {"metric": "mAP", "min": 0.1},
            [make_row("tensorrt_rtx", engine="a.plan", engine_sha256="0" * 64, reason="no NVIDIA GPU")],
            "tensorrt_rtx-fp32 has no mAP: no NVIDIA GPU",
        ),
        ({"metric": "mAP", "device": "rtx4090", "min": 0.1}, [ENGINE], f"asks for device rtx4090, .* ran on {CPU[:8]}"),
        ({"metric": "parity_rel_l2", "max": 0.1}, [ENGINE], "no parity was measured for onnxruntime-fp16"),
        (
            {"metric": "mAP", "vs": "teacher", "min_ratio": 0.9},
            [make_row("teacher", accuracy=Accuracy(mAP=0.0, NDS=0.1)), ENGINE],
            "no ratio to 0",
        ),
    ],
)
def test_what_was_not_measured_is_skipped_and_required_fails(gate, rows, reason: str) -> None:
    skipped = decide({**gate, "required": False}, rows)
    assert (skipped.result, skipped.value, skipped.required) == ("skipped", None, False)
    assert skipped.limit  # the limit is shown even so
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(skipped.reason)
    failed = decide({**gate, "required": False}, rows, require=("gate",))
    assert (failed.result, failed.required) == ("fail", True)


def test_times_of_different_devices_are_not_divided() -> None:
    samples = make_samples(10.0, 10.0)
    teacher = make_row("teacher", samples=samples)
    engine = make_row("tensorrt", samples=samples, device=RTX, engine="a.plan", engine_sha256="0" * 64)
    gate = {"metric": "latency_p50_ms", "vs": "teacher", "max_ratio": 0.5}
    got = decide(gate, [teacher, engine])
    assert got.result == "skipped"
    assert "no ratio of times" in got.reason
    # Accuracy does not depend on where it was computed.
    with_map = [row.model_copy(update={"accuracy": Accuracy(mAP=0.5, NDS=0.5)}) for row in (teacher, engine)]
    assert decide({"metric": "mAP", "vs": "teacher", "min_ratio": 1.0}, with_map).result == "pass"


def test_parity_takes_the_worst_output_of_the_row() -> None:
    parity = (make_parity(rel_l2=0.01), make_parity(rel_l2=0.03), make_parity(rel_l2=0.9, tier="fp32"))
    got = decide({"metric": "parity_rel_l2", "max": 0.05}, [ENGINE], parity=parity)
    assert (got.value, got.result) == (0.03, "pass")


def test_non_finite_outputs_fail_whatever_the_rest_says() -> None:
    got = decide({"metric": "parity_rel_l2", "max": 0.5}, [ENGINE], parity=(make_parity(nonfinite=2),))
    assert got.result == "fail"
    assert got.reason == "onnxruntime-fp16 returned 2 NaN or infinite values"


def test_a_p99_of_few_samples_says_so() -> None:
    few, many = make_samples(1.0, 1.0), make_samples(*[1.0] * 3, frames=100)
    for samples, note in ((few, True), (many, False)):
        row = make_row("onnxruntime", samples=samples, engine="a.onnx", engine_sha256="0" * 64)
        got = decide({"metric": "latency_p99_ms", "max": 5.0}, [row], {row.key: samples})
        assert got.result == "pass"
        assert ("a 99th percentile wants 299" in got.reason) is note


@pytest.mark.parametrize(
    ("wanted", "device", "same"),
    [
        ("rtx4090", "NVIDIA GeForce RTX 4090", True),
        ("rtx4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("l4", "NVIDIA L4", True),
        ("l4", "NVIDIA L40S", False),
        ("agx_orin", "NVIDIA Jetson AGX Orin Developer Kit", True),
        ("agx_orin", "NVIDIA Jetson Orin Nano Developer Kit", False),
        ("orin_nano", "NVIDIA Jetson Orin Nano Developer Kit", True),
        ("rtx4090", CPU, False),
        ("cpu", CPU, True),
        ("EPYC", CPU, True),
        ("Xeon", CPU, False),
    ],
)
def test_devices_by_target_name_or_by_words(wanted: str, device: str, same: bool) -> None:
    assert device_matches(wanted, device) is same


def test_an_unknown_required_gate_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no gate 'gates' in the recipe. Did you mean 'gate'"):
        decide({"metric": "mAP", "min": 0.1}, [ENGINE], require=("gates",))


@pytest.mark.parametrize("reference", ["onnx-fp32", "torch", "engine-fp16"])
def test_a_recipe_cannot_name_a_row_that_never_is(reference: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        GateConfig(name="gate", metric="mAP", min=0.1, of=reference)


def make_result(result: str, name: str = "gate", required: bool = True) -> GateResult:
    return GateResult(
        name=name, value=1.0, interval=None, limit="<= 2", result=result, required=required, reason="mAP is 1"
    )


def test_exit_codes() -> None:
    assert gate_error([make_result("pass"), make_result("skipped")]) is None
    assert gate_error([make_result("fail", required=False), make_result("unstable", required=False)]) is None
    unstable = gate_error([make_result("unstable", "slow"), make_result("pass")])
    assert isinstance(unstable, UnstableMeasurement)
    assert unstable.exit_code == 3
    assert "undecided: slow" in str(unstable)
    failed = gate_error([make_result("unstable"), make_result("fail", "worse")])
    assert isinstance(failed, GateFailed)
    assert failed.exit_code == 1
    assert "gate worse failed: mAP is 1, limit <= 2" in str(failed)
