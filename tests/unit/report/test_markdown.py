from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.report.markdown import (
    RESULTS_BEGIN,
    RESULTS_END,
    readme_table,
    render_markdown,
    summary_markdown,
    update_readme,
)


def test_report_holds_every_table(bench: dict[str, Any]) -> None:
    content = render_markdown(bench)
    assert "**Gates: failed.** retention_map failed" in content
    assert "Latency boundary: graph inputs to boxes" in content
    assert "Measured on Orin, 2026-01-02T03:04:05Z, commit cccccccccccc, 200 frames." in content
    row = (
        "| tensorrt | fp16 | 0.5831 | 0.6331 | -0.0369 | -0.0019 | 12.50 | 13.75 | 15.00 | 2.1 % | 400 | 16.0× | 13.1 "
    )
    assert row in content
    assert "| retention_map | 0.9405 | – | >= 0.95 | **fail** | ratio to the teacher |" in content
    assert "| student-torch | tensorrt | fp16 | boxes | 1.23e-02 | 4.50e-04 | 0.999987 | 0 | 2 | pass |" in content
    assert "| car | 0.7200 | 0.6850 | 0.6831 |" in content
    assert "| gpu.sm | 8.7 |" in content
    assert f"sha256 `{'ab' * 32}`" in content


def test_tables_have_as_many_cells_in_every_row(bench: dict[str, Any]) -> None:
    bench["gates"][0]["reason"] = "a | b"
    block: list[str] = []
    for line in [*render_markdown(bench).splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            assert len({len(row.replace("\\|", "").split("|")) for row in block}) == 1, block
            block = []


def test_text_cannot_become_markup(bench: dict[str, Any]) -> None:
    bench["gates"][1]["reason"] = "<img src=x>"
    assert "<img" not in render_markdown(bench)
    assert "<img" not in summary_markdown(bench)


def test_summary_is_short_and_folds_details(bench: dict[str, Any]) -> None:
    content = summary_markdown(bench)
    head, _, folded = content.partition("<details>")
    assert "gates failed" in head and "| p99_ms |" in head and "| tensorrt |" in head
    assert "0.999987" not in head and "0.999987" in folded
    assert content.count("<details>") == content.count("</details>") == 3


def test_readme_is_replaced_between_the_markers_only(bench: dict[str, Any], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# bevkd\n\n{RESULTS_BEGIN}\nold numbers\n{RESULTS_END}\n\nthe rest\n", encoding="utf-8")
    update_readme(readme, bench)
    content = readme.read_text(encoding="utf-8")
    assert content == f"# bevkd\n\n{readme_table(bench)}\n\nthe rest\n"
    assert "old numbers" not in content and "0.5831" in content
    assert "Measured on Orin, 2026-01-02T03:04:05Z, commit cccccccccccc" in content
    update_readme(readme, bench)
    assert readme.read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    "content",
    ["nothing", RESULTS_BEGIN, f"{RESULTS_END}\n{RESULTS_BEGIN}", f"{RESULTS_BEGIN}{RESULTS_END}{RESULTS_BEGIN}"],
)
def test_readme_without_its_markers_is_left_alone(bench: dict[str, Any], tmp_path: Path, content: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match="needs the line"):
        update_readme(readme, bench)
    assert readme.read_text(encoding="utf-8") == content


def test_missing_readme(bench: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="README not found"):
        update_readme(tmp_path / "README.md", bench)
