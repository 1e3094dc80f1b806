from __future__ import annotations

from typing import Any

import pytest

from bevkd_deploy.report import tables
from bevkd_deploy.report.bench_view import parse_bench
from bevkd_deploy.report.tables import Table


def column(table: Table, name: str) -> list[str]:
    index = [column.name for column in table.columns].index(name)
    return [row[index].text for row in table.rows]


def test_results_by_hand(bench: dict[str, Any]) -> None:
    table = tables.results_table(parse_bench(bench))
    assert column(table, "backend") == ["teacher", "student-torch", "tensorrt"]
    assert column(table, "mAP") == ["0.6200", "0.5850", "0.5831"]
    assert column(table, "Δ mAP teacher") == ["–", "-0.0350", "-0.0369"]
    assert column(table, "Δ mAP student") == ["+0.0350", "–", "-0.0019"]
    assert column(table, "p50 ms") == ["200.0", "60.00", "12.50"]
    assert column(table, "p90 ms") == ["220.0", "66.00", "13.75"]
    assert column(table, "p99 ms") == ["240.0", "72.00", "15.00"]
    assert column(table, "CV") == ["2.1 %"] * 3
    assert column(table, "speed-up") == ["1.0×", "3.3×", "16.0×"]
    assert column(table, "size MB") == ["165", "24.1", "13.1"]
    assert column(table, "memory MB") == ["–", "–", "512"]
    assert not any(note.startswith("On ") for note in table.notes)


def test_p99_of_few_samples_is_marked(bench: dict[str, Any]) -> None:
    bench["backends"][2]["latency_ms"]["n"] = 299
    bench["backends"][1]["latency_ms"]["n"] = 300
    table = tables.results_table(parse_bench(bench))
    assert column(table, "p99 ms") == ["240.0", "72.00", "15.00†"]
    assert "p99 of 299 samples (a p99 needs 300)" in table.notes[0]


def test_what_was_not_measured_is_no_zero(bench: dict[str, Any]) -> None:
    bench["backends"][2].update(latency_ms=None, accuracy=None, reason="needs an NVIDIA GPU")
    table = tables.results_table(parse_bench(bench))
    for name in ("mAP", "NDS", "Δ mAP teacher", "p50 ms", "p99 ms", "CV", "samples", "speed-up"):
        assert column(table, name)[2] == "–", name
    assert table.notes[-1] == "tensorrt fp16: needs an NVIDIA GPU"


def test_no_speed_up_across_devices(bench: dict[str, Any]) -> None:
    bench["backends"][0]["device"] = "H200"
    table = tables.results_table(parse_bench(bench))
    assert column(table, "speed-up") == ["1.0×", "–", "–"]
    assert table.notes[-2:] == ("On H200: teacher fp32.", "On Orin: student-torch fp32, tensorrt fp16.")


def test_classes_without_ground_truth_are_said(bench: dict[str, Any]) -> None:
    for row in bench["backends"]:
        row["accuracy"]["per_class"]["bus"] = None
    view = parse_bench(bench)
    assert tables.results_table(view).notes[0].startswith("mAP and NDS over the 2 classes")
    table = tables.per_class_table(view)
    assert column(table, "class") == ["car", "pedestrian", "bus"]
    assert column(table, "engine (fp16)") == ["0.6831", "0.4831", "–"]
    assert column(table, "teacher (fp32)") == ["0.7200", "0.5200", "–"]


def test_gates_and_their_words(bench: dict[str, Any]) -> None:
    table = tables.gates_table(parse_bench(bench))
    assert column(table, "result") == ["pass", "fail", "unstable", "skipped"]
    assert [row[4].tone for row in table.rows] == ["good", "bad", "warn", "muted"]
    assert column(table, "interval") == ["[0.991, 1.002]", "–", "[14.8, 15.3]", "–"]
    assert column(table, "value")[3] == "–"
    compact = tables.gates_table(parse_bench(bench), compact=True)
    assert "power_w: no power rail" in compact.notes


@pytest.mark.parametrize(
    ("keep", "word", "said"),
    [
        ([0, 1, 2, 3], "failed", "retention_map failed (1 pass, 1 fail, 1 unstable, 1 skipped)"),
        ([0, 2, 3], "undecided", "could not decide p99_ms"),
        ([0, 3], "passed", "1 pass, 1 skipped"),
        ([3], "no verdict", "No gate could be checked"),
        ([], "no verdict", "no gates"),
    ],
)
def test_verdict(bench: dict[str, Any], keep: list[int], word: str, said: str) -> None:
    bench["gates"] = [bench["gates"][index] for index in keep]
    verdict = tables.verdict(parse_bench(bench))
    assert verdict.word == word
    assert said in verdict.sentence


def test_a_gate_that_is_not_required_decides_nothing(bench: dict[str, Any]) -> None:
    for gate in bench["gates"]:
        gate["required"] = gate["result"] == "pass"
    assert tables.verdict(parse_bench(bench)).word == "passed"


def test_broken_parity_is_said_beside_the_gates(passing_bench: dict[str, Any]) -> None:
    passing_bench["parity"][0].update(result="fail", nonfinite=7)
    view = parse_bench(passing_bench)
    assert "Parity fails: tensorrt boxes." in tables.verdict(view).sentence
    table = tables.parity_table(view)
    assert column(table, "non-finite") == ["7"] and column(table, "unmatched") == ["2"]
    assert column(table, "max abs") == ["1.23e-02"] and column(table, "cosine") == ["0.999987"]


def test_evaluations() -> None:
    summary = {"mean_ap": 0.25, "nd_score": 0.3, "tp_errors": {"trans_err": 0.4, "vel_err": None}}
    table = tables.evaluations_table({"teacher": summary, "student": {**summary, "mean_ap": 0.2}})
    assert column(table, "metric") == ["mAP, all classes", "NDS, all classes", "mATE, translation (m)"]
    assert column(table, "student") == ["0.2000", "0.3000", "0.4000"]


def test_stages_and_environment(bench: dict[str, Any]) -> None:
    view = parse_bench(bench)
    assert [[cell.text for cell in row] for row in tables.stages_table(view).rows] == [
        ["tensorrt", "fp16", "2.250", "10.00"]
    ]
    pairs = {row[0].text: row[1].text for row in tables.environment_table(view).rows}
    assert pairs["gpu.sm"] == "8.7" and pairs["frames"] == "200"
