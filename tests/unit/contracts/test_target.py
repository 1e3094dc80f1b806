"""Every shipped target loads, and its figures agree with each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd_deploy.contracts import target as target_module
from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.target import list_targets, load_target

NAMES = (
    "a10", "a100", "agx_orin", "h100", "h200", "l4", "l40s", "orin_nano", "orin_nx", "rtx3090", "rtx4090", "rtx5090",
    "t4", "thor",
)  # fmt: skip

#: Dense FP16 tensor operations (a multiply-add is two) per clock and SM with FP32 accumulation, by compute capability.
FLOP_PER_CLOCK_AND_SM = {"8.7": 2048, "11.0": 8192}

#: Compute capabilities that TensorRT-RTX 1.7 builds for.
RTX_SMS = {"7.5", "8.0", "8.6", "8.9", "12.0"}


def test_the_shipped_targets_are_these() -> None:
    assert list_targets() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_target_is_consistent(name: str) -> None:
    target = load_target(name)
    peak = target.peak_tflops
    assert target.name == name
    assert peak.fp32 < peak.fp16
    if peak.int8 is not None:
        # Dense INT8 is twice FP16; four times where the FP16 figure is that of FP32 accumulation on GeForce.
        assert round(peak.int8 / peak.fp16) == (4 if "GeForce" in target.gpu else 2)
    major, minor = map(int, target.sm.split("."))
    assert (peak.fp8 is not None) == ((major, minor) >= (8, 9))
    assert ("tensorrt_rtx" in target.engine.libraries) == (target.sm in RTX_SMS)
    assert target.is_jetson == (target.sm in ("8.7", "11.0"))


@pytest.mark.parametrize("name", ["orin_nano", "orin_nx", "agx_orin", "thor"])
def test_a_jetsons_peak_follows_from_its_default_mode(name: str) -> None:
    target = load_target(name)
    mode = target.power_modes[0]
    assert mode.sm_count == target.sm_count
    assert mode.gpu_mhz is not None
    peak = target.sm_count * mode.gpu_mhz * 1e6 * FLOP_PER_CLOCK_AND_SM[target.sm] / 1e12
    assert target.peak_tflops.fp16 == pytest.approx(peak, rel=0.01)


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown target 'rtx409'\. Did you mean 'rtx4090'\? Targets: a10, a100, agx"):
        load_target("rtx409")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("watts: 72", "wats: 72", r"power_modes\.0\.wats: Extra inputs"),
        ("name: l4", "name: l5", "name must be 'l4' like the file, got 'l5'"),
        ("memory_gb: 24", "memory_gb: 24\nmemory_gb: 25", "7:1  memory_gb   duplicate key"),
        ("tensorrt_rtx: \">=1.7\", ", "", "versions must name each of"),
    ],
)  # fmt: skip
def test_a_damaged_target_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    text = (target_module.resource_dir("export/targets") / "l4.yaml").read_text()
    assert old in text
    (tmp_path / "l4.yaml").write_text(text.replace(old, new, 1))
    monkeypatch.setattr(target_module, "resource_dir", lambda _: tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        load_target("l4")
    assert str(tmp_path / "l4.yaml") in str(caught.value)
