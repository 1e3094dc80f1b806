from __future__ import annotations

import json
from datetime import datetime

import pytest
from pydantic import ValidationError

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_bytes
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sidecar import (
    Island,
    Library,
    ParityRow,
    Sidecar,
    load_sidecar,
    rebuild_command,
    sidecar_path,
    utc_now,
    write_sidecar,
)

ROW = ParityRow(
    reference="student-torch",
    candidate="onnx-fp16",
    tier="fp16",
    output="boxes",
    max_abs=0.5,
    rel_l2=0.25,
    cosine=0.99,
    nonfinite=0,
    result="pass",
)


@pytest.fixture
def spec() -> GraphSpec:
    return GraphSpec(
        cameras=("CAM_FRONT",),
        image_height_px=32,
        image_width_px=64,
        feature_stride=8,
        depth_min_m=1.0,
        depth_max_m=9.0,
        depth_bins=8,
        range_m=(-4.0, -4.0, -1.0, 4.0, 4.0, 1.0),
        pillar_size_m=0.5,
        bev_stride=2,
        heights_m=(0.0,),
        max_pillars=10,
        max_points=4,
        top_k=5,
    )


@pytest.fixture
def fields(spec: GraphSpec) -> dict:
    """What describes a plan with the bytes b"plan"."""
    return {
        "kind": "plan",
        "file": "student.fp16.rtx4090.plan",
        "sha256": sha256_bytes(b"plan"),
        "onnx_sha256": "a" * 64,
        "recipe": "quickstart",
        "precision": "fp16",
        "precision_table": {"Conv": {"fp16": 3, "fp32": 1}},
        "fp32_islands": (Island(reason="softmax", nodes=("view_transform/Softmax",)),),
        "target": "rtx4090",
        "sm": ("8.9",),
        "library": Library(name="tensorrt_rtx", version="1.7.1.116"),
        "graph": spec,
        "inputs": spec.inputs(),
        "outputs": spec.outputs(),
        "build_seconds": 1.5,
        "parity": (ROW,),
        "created": utc_now(),
    }


@pytest.fixture
def plan(tmp_path, fields):
    path = tmp_path / fields["file"]
    path.write_bytes(b"plan")
    write_sidecar(path, Sidecar(**fields))
    return path


def test_what_is_written_is_read(plan, fields):
    sidecar = load_sidecar(plan)
    assert sidecar == Sidecar(**fields)
    assert sidecar.checkpoint_sha256 == "untrained"
    assert sidecar.parity == (ROW,)


def test_the_file_stands_beside_the_artefact_and_names_its_schema(plan):
    value = json.loads((plan.parent / "student.fp16.rtx4090.plan.json").read_text())
    assert value["schema"] == "bevkd.sidecar/1"
    assert "schema_" not in value
    assert value["graph"]["contract"] == "bevkd.student/1"
    assert [tensor["name"] for tensor in value["inputs"]][:2] == ["images", "pillars"]
    assert "metres" in value["outputs"][0]["meaning"]


def test_a_link_leads_to_the_sidecar_of_its_plan(plan):
    link = plan.with_name("student.plan")
    link.symlink_to(plan.name)
    assert load_sidecar(link).file == plan.name


def test_a_stale_plan_is_refused_with_both_hashes_and_the_fix(plan):
    plan.write_bytes(b"another plan")
    with pytest.raises(ArtifactError) as caught:
        load_sidecar(plan)
    message = str(caught.value)
    assert f"expected sha256 {sha256_bytes(b'plan')[:12]}" in message
    assert f"got {sha256_bytes(b'another plan')[:12]}" in message
    assert "`bevkd export --run <run directory> --trt fp16 --target rtx4090`" in message


def test_missing_files_are_told_apart(plan):
    with pytest.raises(ArtifactError, match=r"artefact not found.*other.plan"):
        load_sidecar(plan.with_name("other.plan"))
    sidecar_path(plan).unlink()
    with pytest.raises(ArtifactError, match=r"has no sidecar: expected student.fp16.rtx4090.plan.json"):
        load_sidecar(plan)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": "bevkd.sidecar/2"}, "schema 'bevkd.sidecar/2', this version reads 'bevkd.sidecar/1'"),
        ({"sha256": "short"}, "sha256: String should match pattern"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"build_seconds": -1}, "build_seconds: Input should be greater than or equal to 0"),
        ({"inputs": []}, "inputs and outputs must be those of the graph contract"),
        ({"outputs": []}, "inputs and outputs must be those of the graph contract"),
    ],
)
def test_a_damaged_sidecar_is_refused(plan, change, problem):
    value = json.loads(sidecar_path(plan).read_text())
    sidecar_path(plan).write_text(json.dumps({**value, **change}))
    with pytest.raises(ArtifactError, match=problem):
        load_sidecar(plan)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_sidecar_that_is_no_object_is_refused(plan, text):
    sidecar_path(plan).write_text(text)
    with pytest.raises(ArtifactError, match="not valid JSON|has schema None"):
        load_sidecar(plan)


def test_a_sidecar_of_another_artefact_is_not_written(plan, fields):
    other = plan.with_name("other.plan")
    other.write_bytes(b"plan")
    with pytest.raises(ArtifactError, match="describes student.fp16.rtx4090.plan"):
        write_sidecar(other, Sidecar(**fields))
    assert not sidecar_path(other).exists()
    with pytest.raises(ArtifactError, match="the artefact is student.fp16.rtx4090.plan"):
        write_sidecar(plan, Sidecar(**{**fields, "sha256": "b" * 64}))


def test_onnx_has_one_hash(fields):
    with pytest.raises(ValidationError, match="must be the same"):
        Sidecar(**{**fields, "kind": "onnx"})


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(ValidationError, match="finite number"):
        ParityRow(**{**ROW.model_dump(), "rel_l2": float("nan")})


def test_rebuild_commands(fields):
    plan = Sidecar(**fields)
    assert rebuild_command(plan) == "bevkd export --run <run directory> --trt fp16 --target rtx4090"
    onnx = Sidecar(**{**fields, "kind": "onnx", "onnx_sha256": fields["sha256"], "target": None, "sm": ()})
    assert rebuild_command(onnx) == "bevkd export --run <run directory> --onnx-only"


def test_time_is_utc():
    assert datetime.fromisoformat(utc_now()).utcoffset().total_seconds() == 0
