from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bevkd_deploy.benchmark.latency import LatencySamples, save_samples
from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.report.html import ReportInputs, collect_inputs, read_samples, render_html, write_html

VOID = {"meta", "img", "br", "hr", "input", "link"}
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Tags, attributes and visible text; unbalanced tags fail."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def run_dir(bench: dict[str, Any], tmp_path: Path) -> Path:
    """A run directory with every file a report can use."""
    run = tmp_path / "quickstart" / "20260102"
    write_json(run / "benchmark" / "bench.json", bench)
    samples = {
        row["name"] + "-" + row["precision"]: LatencySamples(
            np.linspace(0.9, 1.3, 20).reshape(2, 10) * row["latency_ms"]["p50"], {"engine": np.full((2, 10), 1e6)}
        )
        for row in bench["backends"]
    }
    save_samples(run / "benchmark" / "samples.npz", samples)
    summary = {"mean_ap": 0.585, "nd_score": 0.635, "tp_errors": {"trans_err": 0.3456}}
    write_json(run / "eval" / "student.json", summary)
    write_json(run / "eval" / "teacher.json", {**summary, "mean_ap": 0.62})
    write_json(run / "eval" / "submission.json", {"meta": {}, "results": {}})
    write_json(run / "manifest.json", {"recipe": {"sha256": "7" * 64}})
    lines = [f'{{"step": {step}, "losses": {{"heatmap_loss": {1 / step}}}}}' for step in range(1, 30)]
    (run / "events.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (run / "pictures").mkdir()
    cv2.imwrite(str(run / "pictures" / "tok.bev.png"), np.zeros((4, 4, 3), np.uint8))
    return run


def test_page_holds_everything(run_dir: Path) -> None:
    inputs = collect_inputs(run_dir, ("bevkd show runs/x",))
    page = Page(write_html(inputs, run_dir / "benchmark" / "report.html").read_text(encoding="utf-8"))
    for words in (
        "quickstart / 20260102",
        "Gates: failed",
        "graph inputs to boxes",
        "94.0 % of the teacher's 0.6200",
        "12.50 ms",
        "speed-up over the teacher: 16.0×",
        "latency of one frame (ms)",
        "average precision",
        "0.3456",
        "Parity",
        "Training",
        "heatmap",
        "Bird's-eye view of frame tok",
        "7" * 64,
        "ab" * 32,
        "bevkd show runs/x",
    ):
        assert words in page.text, words
    # Colour is never alone: the word stands in the coloured cell.
    tones = {value for tag, name, value in page.attributes if tag == "span" and name == "class"}
    assert {"tone good", "tone bad", "tone warn", "tone muted"} <= tones
    for word in ("pass", "fail", "unstable", "skipped"):
        assert word in page.words


def test_page_needs_nothing_else(run_dir: Path) -> None:
    content = render_html(collect_inputs(run_dir))
    page = Page(content)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
    assert "@import" not in content
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", content))
    (image,) = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert base64.b64decode(image.split(",")[1]).startswith(PNG)


def test_ids_are_unique_and_links_resolve(run_dir: Path) -> None:
    page = Page(render_html(collect_inputs(run_dir)))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    targets = {value[1:] for _, name, value in page.attributes if name == "xlink:href"}
    targets |= {found for _, _, value in page.attributes for found in re.findall(r"url\(#([^)]*)\)", value)}
    assert targets and targets <= set(ids)


def test_light_and_dark_and_narrow(run_dir: Path) -> None:
    content = render_html(collect_inputs(run_dir))
    assert "prefers-color-scheme: dark" in content and 'name="viewport"' in content
    assert "currentColor" in content and "#010203" not in content
    assert Page(content).attributes.count(("div", "class", "scroll")) >= content.count("<table>") > 5


def test_sections_without_input_are_left_out(bench: dict[str, Any]) -> None:
    page = Page(render_html(ReportInputs(bench={**bench, "gates": [], "parity": []})))
    headings = {"Gates", "Parity", "Training", "Pictures", "Next"}
    assert not headings & set(page.words)
    assert "svg" in page.tags and "latency of one frame (ms)" not in page.text


def test_text_cannot_become_markup(bench: dict[str, Any]) -> None:
    bench["gates"][1]["reason"] = "<script>alert(1)</script>"
    bench["backends"][2]["name"] = "tensorrt"
    page = Page(render_html(ReportInputs(bench=bench, title="<b>x</b>")))
    assert "script" not in page.tags and "b" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_teacher_comes_first_and_only_summaries_are_evaluations(run_dir: Path) -> None:
    assert list(collect_inputs(run_dir).evaluations) == ["teacher", "student"]


def test_samples_are_the_whole_latencies(run_dir: Path) -> None:
    samples = read_samples(run_dir / "benchmark" / "samples.npz")
    assert set(samples) == {"teacher-fp32", "student-torch-fp32", "tensorrt-fp16"}
    np.testing.assert_allclose(samples["tensorrt-fp16"], np.linspace(0.9, 1.3, 20) * 12.5)


def test_pickled_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", **{"a/total": np.array([{}], dtype=object)})
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_samples(tmp_path / "s.npz")


def test_run_without_a_benchmark(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="benchmark result not found"):
        collect_inputs(tmp_path)


def test_missing_picture(bench: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="picture not found"):
        render_html(ReportInputs(bench=bench, pictures=(tmp_path / "x.png",)))
