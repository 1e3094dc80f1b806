"""The README's results are those of the committed file, and that file is what the demo measures."""

from __future__ import annotations

import runpy
from pathlib import Path

from bevkd_deploy.benchmark.result import load_bench
from bevkd_deploy.contracts.files import read_json, sha256_file
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.report.markdown import readme_table

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "quickstart" / "bench.json"


def test_the_readme_shows_the_committed_result() -> None:
    assert readme_table(read_json(RESULT, "result")) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_committed_result_is_of_this_recipe_and_passes_its_gates() -> None:
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml").recipe
    bench = load_bench(RESULT)
    assert [gate.name for gate in bench.gates] == [gate.name for gate in recipe.gates]
    assert {gate.result for gate in bench.gates} == {"pass"}
    assert bench.environment["commit"]
    teacher = bench.find("teacher")
    assert teacher is not None and teacher.accuracy is not None
    assert teacher.accuracy.mAP >= 0.45
    assert teacher.size_mb == (ROOT / "recipes" / str(recipe.teacher.checkpoint)).stat().st_size / 1e6


def test_the_teacher_record_is_of_the_committed_weights() -> None:
    weights = ROOT / "recipes" / "checkpoints" / "quickstart_teacher.safetensors"
    record = read_json(weights.with_suffix(".json"), "teacher record")
    assert record["sha256"] == sha256_file(weights)
    assert record["mAP"] >= 0.45


def test_the_study_of_distillation_is_what_its_page_and_the_readme_say() -> None:
    folder = ROOT / "benchmarks" / "distill_gain"
    result = read_json(folder / "results.json", "result")
    publish = runpy.run_path(str(folder / "publish.py"))
    page = ROOT / "docs" / "results" / "distillation.md"
    written = publish["page"](result, read_json(folder / "scan.json", "scan"))
    assert written == page.read_text(encoding="utf-8"), "run: python benchmarks/distill_gain/publish.py"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(result["seeds"]) >= 3
    assert result["environment"]["commit"] and result["environment"]["dirty"] is False
    for arm in ("alone", "mix"):
        assert f"{sum(result['arms'][arm]['mAP']) / len(result['seeds']):.3f}" in text
    mean, low, _ = publish["gains"](result, "mix")["closed"]
    assert f"{100 * mean:.0f} %" in text
    assert mean >= 0.5 and low > 0
    for arm in result["arms"].values():
        assert len(arm["mAP"]) == len(result["seeds"])


def test_a_distillation_step_costs_what_the_page_says() -> None:
    ratios = read_json(ROOT / "benchmarks" / "distill" / "results.json", "result")["sizes"]["quickstart"]["ratios"]
    assert ratios["full_to_teacher_and_plain"]["median"] <= 1.10
    assert ratios["full_with_gradient_norms_logged"]["median"] <= 1.10


def test_bevfusion_is_as_fast_as_its_page_says() -> None:
    result = read_json(ROOT / "benchmarks" / "bevfusion" / "results.json", "result")
    assert result["environment"]["commit"] and result["environment"]["dirty"] is False
    for threads in ("threads_1", "threads_2"):
        assert result[threads]["ours_to_theirs"]["median_of_rounds"] <= 0.75
        assert result[threads]["boxes"]["distinct_matches"] == 200


def test_the_evaluation_page_quotes_the_measured_speed() -> None:
    folder = ROOT / "benchmarks" / "evaluation"
    result = read_json(folder / "results.json", "result")
    tables = runpy.run_path(str(folder / "table.py"))["tables"](result)
    assert tables in (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert result["environment"]["commit"] and result["environment"]["dirty"] is False
    for row in result["against_devkit"].values():
        assert row["times_faster"]["table"] >= 50 and row["times_faster"]["records"] >= 50
    for row in result["whole_split"].values():
        assert row["table"]["evaluation_s"] < 15 and row["table"]["peak_gib"] < 4
