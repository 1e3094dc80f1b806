from __future__ import annotations

from typing import Any

import pytest

from bevkd_deploy.benchmark.result import Bench as WrittenBench
from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.report.bench_view import Bench, load_bench, parse_bench


def test_reads_what_the_benchmark_writes(bench: dict[str, Any]) -> None:
    written = WrittenBench.model_validate(bench).model_dump(mode="json", by_alias=True)
    view = parse_bench(written)
    assert view.engine is not None and view.engine.engine == "student.fp16.orin.plan"
    assert view.find("teacher").latency_ms.p50 == 200.0
    # Keys that a later writer may add do no harm.
    assert parse_bench({**written, "new_key": 1}) == view


def test_every_field_of_the_writer_is_known_to_the_reader() -> None:
    """A field that is renamed where the file is written would otherwise vanish from the reports unseen."""
    written, read = WrittenBench.model_fields, Bench.model_fields
    assert set(written) == set(read)
    for part in ("backends", "gates", "parity"):
        theirs = written[part].annotation.__args__[0].model_fields
        ours = read[part].annotation.__args__[0].model_fields
        assert set(theirs) == set(ours), part


def test_problems_are_all_named(bench: dict[str, Any]) -> None:
    del bench["backends"][0]["precision"]
    bench["gates"][1]["result"] = "green"
    with pytest.raises(ArtifactError, match=r"old\.json is not a bevkd\.benchmark/1 file") as caught:
        parse_bench(bench, "old.json")
    assert "backends.0.precision" in str(caught.value) and "gates.1.result" in str(caught.value)


def test_another_schema_is_refused(bench: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="schema"):
        parse_bench({**bench, "schema": "bevkd.benchmark/9"})


def test_load(bench: dict[str, Any], tmp_path: Any) -> None:
    assert load_bench(write_json(tmp_path / "bench.json", bench)) == parse_bench(bench)
    with pytest.raises(ArtifactError, match="list, expected an object"):
        load_bench(write_json(tmp_path / "list.json", []))


def test_device_of_a_row_counts_before_that_of_the_file(bench: dict[str, Any]) -> None:
    bench["backends"][0]["device"] = "a CPU"
    view = parse_bench(bench)
    teacher, student, engine = view.backends
    assert view.same_device(student, engine)
    assert not view.same_device(teacher, engine)
    assert view.device == "a CPU and Orin"
    assert parse_bench({**bench, "backends": []}).device == "Orin"


def test_changed_code_is_said(bench: dict[str, Any]) -> None:
    assert parse_bench(bench).code == "c" * 12
    bench["environment"]["dirty"] = True
    assert parse_bench(bench).code == "c" * 12 + " with changes"
    bench["environment"]["commit"] = None
    assert parse_bench(bench).code == ""
