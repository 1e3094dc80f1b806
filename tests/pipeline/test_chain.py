"""The three commands of the README on a small synthetic world: files, numbers and messages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import onnx
import pytest

from bevkd_deploy.benchmark.result import load_bench
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.sidecar import load_sidecar

from .conftest import RECIPES, SMALL


@pytest.fixture(scope="module")
def bench(chain: Any) -> Any:
    return load_bench(chain.run / "benchmark" / "bench.json")


def test_the_run_directory_holds_what_the_architecture_promises(chain: Any) -> None:
    for name in (
        "recipe.yaml", "recipe.resolved.yaml", "manifest.json", "env.json", "events.jsonl", "tb", "log.txt",
        "checkpoints/last.safetensors", "checkpoints/best.safetensors", "state/state.pt",
        "eval/teacher.json", "eval/student.json",
        "export/student.fp32.onnx", "export/student.fp32.onnx.json", "export/student.fp16.onnx",
        "export/student.fp16.rtx4090.plan", "export/student.fp16.rtx4090.plan.json", "export/student.plan",
        "benchmark/bench.json", "benchmark/samples.npz", "benchmark/gates.xml", "benchmark/report.md",
        "benchmark/report.html",
    ):  # fmt: skip
        assert (chain.run / name).exists(), name
    assert (chain.folder / "runs" / "latest").resolve() == chain.run


def test_the_manifest_hashes_every_output(chain: Any) -> None:
    manifest = json.loads((chain.run / "manifest.json").read_text())
    assert [stage["name"] for stage in manifest["stages"]] == ["distill", "export", "benchmark"]
    for stage in manifest["stages"]:
        assert stage["outputs"]
        for file, digest in stage["outputs"].items():
            assert sha256_file(chain.run / file) == digest, file


def test_each_command_says_what_to_run_next(chain: Any) -> None:
    for done in (chain.distill, chain.export, chain.benchmark):
        assert "Next: bevkd" in done.err
    assert "the latest" in chain.export.err


def test_the_benchmark_has_teacher_student_and_both_onnx_rows(bench: Any) -> None:
    rows = {row.key: row for row in bench.backends}
    assert {"teacher-fp32", "student-torch-fp32", "onnxruntime-fp32", "onnxruntime-fp16"} <= set(rows)
    for key in ("teacher-fp32", "student-torch-fp32", "onnxruntime-fp32", "onnxruntime-fp16"):
        assert rows[key].latency_ms.n == 6
        assert rows[key].accuracy is not None
        assert rows[key].size_mb > 0
    assert "sensor arrays" in bench.boundary
    plan = next(row for row in bench.backends if row.name == "tensorrt_rtx")
    assert plan.latency_ms is None and plan.accuracy is None
    assert plan.reason


def test_fp32_onnx_agrees_with_pytorch_to_1e_4(bench: Any) -> None:
    rows = [row for row in bench.parity if row.tier == "fp32"]
    assert {row.output for row in rows} == {"boxes", "scores", "labels"}
    for row in rows:
        assert row.result == "pass"
        assert row.rel_l2 <= 1e-4
        assert row.nonfinite == row.unmatched == 0


def test_fp16_onnx_is_finite_and_as_accurate(bench: Any) -> None:
    assert [row.nonfinite for row in bench.parity if row.tier == "fp16"] == [0, 0, 0]
    accuracy = {row.key: row.accuracy.mAP for row in bench.backends if row.accuracy}
    assert abs(accuracy["onnxruntime-fp16"] - accuracy["onnxruntime-fp32"]) <= 0.01
    assert accuracy["onnxruntime-fp32"] == pytest.approx(accuracy["student-torch-fp32"], abs=1e-3)


def test_the_fp16_file_is_typed_and_keeps_its_islands(chain: Any) -> None:
    model = onnx.load(chain.run / "export" / "student.fp16.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    sidecar = load_sidecar(chain.run / "export" / "student.fp16.onnx")
    assert sidecar.fp32_islands
    assert sidecar.precision_table["Conv"].get("fp16", 0) > 0


def test_raw_samples_are_kept(chain: Any) -> None:
    with np.load(chain.run / "benchmark" / "samples.npz") as samples:
        assert samples["onnxruntime-fp32/total"].shape == (2, 3)


def test_the_report_stands_alone(chain: Any) -> None:
    page = (chain.run / "benchmark" / "report.html").read_text()
    sources: list[str] = []

    class Sources(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            sources.extend(value or "" for name, value in attrs if name in ("src", "href"))

    Sources().feed(page)
    assert [source for source in sources if source.startswith(("http:", "https:", "//"))] == []
    assert sum(source.startswith("data:image/png") for source in sources) == 2
    for name in ("teacher", "student-torch", "onnxruntime"):
        assert name in page


def test_pictures_are_drawn(chain: Any) -> None:
    pictures = sorted(path.name.split(".", 1)[1] for path in (chain.run / "pictures").glob("*.png"))
    assert pictures == ["bev.png", "cameras.png"]


def test_the_table_goes_to_stdout_and_the_talk_to_stderr(chain: Any) -> None:
    assert "teacher" in chain.benchmark.out and "mAP" in chain.benchmark.out
    assert chain.distill.out == ""


def test_a_plan_that_cannot_run_exits_4_and_names_the_twin(chain: Any, bevkd: Callable[..., Any]) -> None:
    done = bevkd("benchmark", "--engine", "student.plan", cwd=chain.folder, code=4)
    assert "--engine student.onnx" in done.err
    assert "8.9" in done.err
    assert "Traceback" not in done.err


def test_a_stale_plan_is_refused(chain: Any, bevkd: Callable[..., Any]) -> None:
    copy = chain.folder / "stale"
    shutil.copytree(chain.run, copy, symlinks=True)
    plan = copy / "export" / "student.fp16.rtx4090.plan"
    plan.write_bytes(plan.read_bytes() + b"x")
    done = bevkd("benchmark", "--engine", str(plan), cwd=chain.folder, code=5)
    assert "bevkd export" in done.err and "sidecar" in done.err


def test_an_engine_of_other_weights_is_refused(chain: Any, bevkd: Callable[..., Any]) -> None:
    copy = chain.folder / "other"
    shutil.copytree(chain.run, copy, symlinks=True)
    shutil.copy(copy / "checkpoints" / "last.safetensors", copy / "kept")
    weights = bytearray((copy / "kept").read_bytes())
    weights[-1] ^= 1
    (copy / "checkpoints" / "last.safetensors").write_bytes(weights)
    done = bevkd("benchmark", "--run", str(copy), "--engine", "student.onnx", cwd=chain.folder, code=5)
    assert "stale" in done.err and "bevkd export" in done.err


def test_the_same_student_exports_to_the_same_bytes(chain: Any, bevkd: Callable[..., Any]) -> None:
    copy = chain.folder / "again"
    shutil.copytree(chain.run, copy, symlinks=True)
    shutil.rmtree(copy / "export")
    bevkd("export", "--run", str(copy), "--trt", "fp16", cwd=chain.folder)
    for name in ("student.fp32.onnx", "student.fp16.onnx"):
        assert sha256_file(copy / "export" / name) == sha256_file(chain.run / "export" / name), name
    # The library does not promise equal plans for equal ONNX files; the sidecar ties a plan to the file it came from.
    plan = load_sidecar(copy / "export" / "student.plan")
    assert plan.onnx_sha256 == sha256_file(chain.run / "export" / "student.fp16.onnx")


def test_gates_decide_the_exit_code(chain: Any, bevkd: Callable[..., Any]) -> None:
    copy = chain.folder / "gated"
    shutil.copytree(chain.run, copy, symlinks=True)
    resolved = (copy / "recipe.resolved.yaml").read_text()
    impossible = "gates:\n- {name: perfect, metric: mAP, min: 1.0}\n- {name: small, metric: size_mb, max: 50}\n"
    assert "gates: []" in resolved
    (copy / "recipe.resolved.yaml").write_text(resolved.replace("gates: []\n", impossible))
    junit = chain.folder / "gates.xml"
    done = bevkd(
        "benchmark", "--run", str(copy), "--engine", "student.onnx", "--junit", str(junit), cwd=chain.folder, code=1
    )
    assert "perfect" in done.err
    assert 'failures="1"' in junit.read_text()
    assert '"small"' in junit.read_text()


def test_two_targets_share_one_row(chain: Any, bevkd: Callable[..., Any]) -> None:
    copy = chain.folder / "targets"
    shutil.copytree(chain.run, copy, symlinks=True)
    bevkd("export", "--run", str(copy), "--trt", "fp16", "--target", "l4", cwd=chain.folder)
    assert len(list((copy / "export").glob("*.plan"))) == 3  # two plans and the link to the newer one
    bevkd("benchmark", "--run", str(copy), cwd=chain.folder)
    bench = load_bench(copy / "benchmark" / "bench.json")
    assert [row.engine for row in bench.backends if row.name == "tensorrt_rtx"] == ["student.fp16.l4.plan"]


def test_run_reuses_finished_stages(chain: Any, bevkd: Callable[..., Any]) -> None:
    copy = chain.folder / "resumed"
    shutil.copytree(chain.run, copy, symlinks=True)
    recipe = str(RECIPES / "quickstart.yaml")
    done = bevkd("run", recipe, *SMALL, "gates=[]", "--run-dir", str(copy), "--resume", cwd=chain.folder)
    assert done.err.count("reused") == 2
    (copy / "export" / "student.fp32.onnx").unlink()
    done = bevkd("run", recipe, *SMALL, "gates=[]", "--run-dir", str(copy), "--resume", cwd=chain.folder)
    assert done.err.count("reused") == 1
    assert (copy / "export" / "student.fp32.onnx").is_file()


def test_json_on_stdout_is_json_alone(chain: Any, bevkd: Callable[..., Any]) -> None:
    done = bevkd("benchmark", "--engine", "student.onnx", "--json", "-", cwd=chain.folder)
    assert json.loads(done.out)["schema"] == "bevkd.benchmark/1"


def test_compare_and_show(chain: Any, bevkd: Callable[..., Any]) -> None:
    file = str(chain.run / "benchmark" / "bench.json")
    assert "onnxruntime" in bevkd("compare", file, file, cwd=chain.folder).out
    done = bevkd("show", str(chain.run), cwd=chain.folder)
    assert ".bev.png" in done.err


def test_the_student_alone_can_be_trained(chain: Any, bevkd: Callable[..., Any]) -> None:
    recipe = str(chain.run / "recipe.resolved.yaml")
    done = bevkd("train", recipe, "--no-distill", "student.train.epochs=1", "--run-dir", "alone", cwd=chain.folder)
    assert "student after epoch 1" in done.err
    losses = json.loads((chain.folder / "alone" / "manifest.json").read_text())
    assert losses["stages"][0]["name"] == "train-student"
