from __future__ import annotations

import copy
from typing import Any

from bevkd_deploy.report.compare import compare_benches
from bevkd_deploy.report.tables import Table


def rows_of(table: Table, backend: str) -> dict[str, list[str]]:
    rows, current = {}, ""
    for row in table.rows:
        current = row[0].text or current
        if current == backend:
            rows[row[1].text] = [cell.text for cell in row[2:]]
    return rows


def test_changes_by_hand(bench: dict[str, Any]) -> None:
    other = copy.deepcopy(bench)
    engine = other["backends"][2]
    engine["latency_ms"].update(p50=15.0, p90=14.0)
    engine["size_mb"] = 6.535
    engine["accuracy"]["NDS"] = 0.6231
    rows = rows_of(compare_benches(bench, other), "tensorrt fp16")
    assert rows["p50 ms"] == ["12.50", "15.00", "+20.0 %", "slower"]
    # 13.75 -> 14.00 is +1.8 %, too small to be called slower.
    assert rows["p90 ms"] == ["13.75", "14.00", "+1.8 %", ""]
    assert rows["size MB"] == ["13.1", "6.54", "-50.0 %", ""]
    assert rows["NDS"] == ["0.6331", "0.6231", "-0.0100", ""]
    assert rows["mAP"] == ["0.5831", "0.5831", "+0.0000", ""]


def test_no_verdict_across_devices(bench: dict[str, Any]) -> None:
    other = copy.deepcopy(bench)
    other["environment"]["device"] = "H200"
    for row in other["backends"]:
        row["device"] = "H200"
        row["latency_ms"]["p50"] /= 2
    table = compare_benches(bench, other, ("a.json", "b.json"))
    rows = rows_of(table, "tensorrt fp16")
    assert rows["p50 ms"] == ["12.50", "6.250", "–", "different devices"]
    assert rows["mAP"][2] == "+0.0000"
    assert "a.json ran on Orin, b.json on H200: no verdict on their times." in table.notes


def test_notes_say_what_else_differs(bench: dict[str, Any]) -> None:
    other = copy.deepcopy(bench)
    other["environment"]["gpu"]["sm"] = "8.9"
    other["environment"]["commit"] = "d" * 40
    other["boundary"] = "images to boxes"
    other["frames"] = 10
    del other["backends"][0]
    notes = " ".join(compare_benches(bench, other).notes)
    for said in ("gpu.sm: 8.7 → 8.9", "different boundaries", "different frames", "Only in A: teacher-fp32"):
        assert said in notes
    assert "commit" not in notes


def test_rows_without_numbers_are_left_out(bench: dict[str, Any]) -> None:
    for row in bench["backends"]:
        row["latency_ms"] = None
    assert set(rows_of(compare_benches(bench, bench), "tensorrt fp16")) == {"mAP", "NDS", "size MB"}
