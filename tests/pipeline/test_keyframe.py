"""The whole chain on one real nuScenes keyframe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevkd_deploy.benchmark.result import load_bench

from .conftest import KEYFRAME, RECIPES


@pytest.mark.slow
@pytest.mark.skipif(not KEYFRAME.is_dir(), reason="needs the nuScenes keyframe beside the checkout")
def test_a_student_fitted_to_the_keyframe_detects_its_objects(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    done = bevkd("run", str(RECIPES / "keyframe.yaml"), f"data.root={KEYFRAME}", cwd=tmp_path, timeout=1200)
    run = tmp_path / "runs" / "keyframe" / "latest"
    bench = load_bench(run / "benchmark" / "bench.json")
    accuracy = {row.key: row.accuracy for row in bench.backends if row.accuracy}
    for key in ("onnxruntime-fp32", "onnxruntime-fp16"):
        assert accuracy[key].mAP >= 0.6
    present = {name for name, ap in accuracy["onnxruntime-fp32"].per_class.items() if ap is not None}
    # The other five classes have no object with points inside their evaluation range in this frame.
    assert present == {"car", "truck", "pedestrian", "traffic_cone", "barrier"}
    assert abs(accuracy["onnxruntime-fp16"].mAP - accuracy["onnxruntime-fp32"].mAP) <= 0.01
    assert all(row.result == "pass" for row in bench.parity)
    assert all(row.rel_l2 <= 1e-4 for row in bench.parity if row.tier == "fp32")
    assert {gate.name: gate.result for gate in bench.gates} == {"student_accuracy": "pass", "fp16_drop": "pass"}
    assert len(list((run / "pictures").glob("*.png"))) == 2
    assert "gates" in done.out
