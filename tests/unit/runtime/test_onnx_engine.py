"""ONNX Runtime behind the engine interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bevkd_deploy.contracts.errors import ArtifactError, CannotRunHere, DataError, UsageError
from bevkd_deploy.runtime.engine import open_engine

onnx = pytest.importorskip("onnx")


def test_runs_the_graph(tools, artefact: Path, feed) -> None:
    with open_engine(artefact) as engine:
        outputs = engine.run(feed)
    assert list(outputs) == ["boxes", "scores", "labels"]
    np.testing.assert_allclose(outputs["boxes"], tools.expected_boxes(feed), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(outputs["scores"], tools.scores)
    np.testing.assert_array_equal(outputs["labels"], tools.labels)


def test_says_what_it_is(artefact: Path) -> None:
    with open_engine(artefact, threads=1) as engine:
        assert (engine.name, engine.precision, engine.device) == ("onnxruntime", "fp32", "cpu")
        assert engine.version == onnxruntime.__version__


def test_memory_order_does_not_matter(tools, artefact: Path, feed) -> None:
    feed["images"] = np.asfortranarray(feed["images"])
    with open_engine(artefact) as engine:
        np.testing.assert_allclose(engine.run(feed)["boxes"], tools.expected_boxes(feed), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda feed: feed.pop("pillars"), "missing input 'pillars'"),
        (lambda feed: feed.update(lidar=feed["pillars"]), "unknown input 'lidar'"),
        (
            lambda feed: feed.update(images=feed["images"][:1]),
            r"'images' is uint8 \[1, 32, 64, 3\], expected uint8 \[2,",
        ),
        (
            lambda feed: feed.update(lut_depth=feed["lut_depth"].astype(np.int64)),
            "'lut_depth' is int64 .*expected int32",
        ),
    ],
)
def test_a_wrong_feed_is_refused(artefact: Path, feed, change, message: str) -> None:
    change(feed)
    with open_engine(artefact) as engine, pytest.raises(DataError, match=message):
        engine.run(feed)


def test_all_problems_of_a_feed_are_named_at_once(artefact: Path) -> None:
    with open_engine(artefact) as engine, pytest.raises(DataError) as caught:
        engine.run({"lidar": np.zeros(1)})
    for name in ("lidar", "images", "pillars", "pillar_count", "pillar_index", "lut_pixel", "lut_depth"):
        assert f"'{name}'" in str(caught.value)


def test_a_closed_engine_says_so(artefact: Path, feed) -> None:
    engine = open_engine(artefact)
    engine.close()
    with pytest.raises(UsageError, match="engine is closed"):
        engine.run(feed)


def test_a_graph_other_than_its_sidecar_is_refused(tools, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    onnx.save(tools.make_graph(output_boxes="bboxes"), path)
    tools.make_sidecar(path)
    with pytest.raises(ArtifactError, match="does not follow the graph contract: 'bboxes' is .*'boxes' is None"):
        open_engine(path)


def test_a_damaged_file_is_refused(tools, artefact: Path) -> None:
    artefact.write_bytes(artefact.read_bytes()[:100])
    tools.make_sidecar(artefact)  # the hash fits: only the library can find out
    with pytest.raises(ArtifactError, match=r"ONNX Runtime .* cannot load student\.fp32\.onnx"):
        open_engine(artefact)


def test_a_changed_file_is_refused_before_it_is_loaded(artefact: Path) -> None:
    artefact.write_bytes(artefact.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="not the file its sidecar describes"):
        open_engine(artefact)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_missing_provider_cannot_run_here(artefact: Path, provider: str) -> None:
    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this ONNX Runtime has GPU providers")
    with pytest.raises(CannotRunHere, match="Install onnxruntime-gpu") as caught:
        open_engine(artefact, provider=provider)
    assert caught.value.exit_code == 4


def test_threads_must_be_positive(artefact: Path) -> None:
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        open_engine(artefact, threads=0)
