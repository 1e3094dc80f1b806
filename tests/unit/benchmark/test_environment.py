"""What a measurement ran on. nvidia-smi and nvpmodel are played by scripts, git is real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bevkd_deploy.benchmark import environment
from bevkd_deploy.benchmark.environment import collect_environment, device_label

SMI_ANSWER = "NVIDIA GeForce RTX 4090, 580.1, 8.9, 24564, 450.00, 2520, 3105, 41"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, but for what a shell script needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat", "git"):
        real = shutil.which(name)
        if real:
            (folder / name).symlink_to(real)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(environment, "_DEVICE_TREE_MODEL", tmp_path / "model")
    return folder


def put_script(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!{folder / 'sh'}\n{body}\n")
    path.chmod(0o755)


def test_a_machine_without_a_gpu(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_info = tmp_path / "cpuinfo"
    processor = "processor: {}\nmodel name\t: AMD EPYC 7B13\nphysical id: 0\ncore id\t: {}\n\n"
    cpu_info.write_text("".join(processor.format(number, number // 2) for number in range(74)))
    monkeypatch.setattr(environment, "_CPU_INFO", cpu_info)
    monkeypatch.setattr(environment, "_GOVERNOR", tmp_path / "governor")
    found = collect_environment()
    assert found["device"] == "AMD EPYC 7B13 (CPU)"
    assert found["gpu"] == "none"
    assert found["cpu"] == {"model": "AMD EPYC 7B13", "cores": 37, "threads": os.cpu_count()}
    assert found["clocks"].startswith("not measured: no NVIDIA GPU")
    (tmp_path / "governor").write_text("performance\n")
    assert collect_environment()["clocks"] == "CPU governor performance, not locked"


def test_is_json_and_names_the_software(tools: Path) -> None:
    found = json.loads(json.dumps(collect_environment(), allow_nan=False))
    assert {"device", "date", "commit", "dirty", "os", "python", "libraries", "thread_settings"} <= set(found)
    assert {"numpy", "onnxruntime"} <= set(found["libraries"])


def test_a_gpu_and_its_clocks(tools: Path) -> None:
    put_script(tools, "nvidia-smi", f"echo '{SMI_ANSWER}'")
    found = collect_environment()
    assert found["device"] == "NVIDIA GeForce RTX 4090"
    assert found["gpu"] == {
        "name": "NVIDIA GeForce RTX 4090",
        "driver": "580.1",
        "sm": "8.9",
        "memory_mib": "24564",
        "power_limit_w": "450.00",
    }
    assert found["clocks"] == {
        "sm_clock_mhz": "2520",
        "max_sm_clock_mhz": "3105",
        "temperature_c": "41",
        "state": "as found, not locked",
    }


def test_an_nvidia_smi_that_fails_is_no_gpu_with_a_reason(tools: Path) -> None:
    put_script(tools, "nvidia-smi", "echo 'NVML: Driver/library version mismatch'; exit 18")
    found = collect_environment()
    assert found["gpu"] == "none"
    assert found["clocks"] == "not measured: nvidia-smi says 'NVML: Driver/library version mismatch'"


def test_a_jetson_is_its_board_and_power_mode(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    found = collect_environment()
    assert found["device"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found["clocks"] == "not measured: nvpmodel is not installed"
    put_script(tools, "nvpmodel", "printf 'NV Power Mode: MAXN\\n0\\n'")
    assert collect_environment()["clocks"] == {"power_mode": "NV Power Mode: MAXN 0", "state": "as found"}
    # CUDA calls the GPU of every Orin "Orin"; a row must say which board.
    assert device_label("Orin", found) == "NVIDIA Jetson AGX Orin Developer Kit"


def test_rows_are_labelled_by_where_they_ran(tools: Path) -> None:
    put_script(tools, "nvidia-smi", f"echo '{SMI_ANSWER}'")
    found = collect_environment()
    assert device_label("cpu", found) == f"{found['cpu']['model']} (CPU)"
    assert device_label("NVIDIA H200", found) == "NVIDIA H200"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_the_checkouts_own(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    assert environment._commit(checkout) == (None, None)  # an installed package lies in no checkout

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
        command = ["git", "-C", str(checkout), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    assert environment._commit(checkout) == (None, None)  # nothing committed yet
    (checkout / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert environment._commit(checkout) == (head, False)
    (checkout / "venv").mkdir()  # a package installed inside somebody else's checkout has no commit of its own
    assert environment._commit(checkout / "venv") == (None, None)
    (checkout / "file").write_text("2")
    assert environment._commit(checkout) == (head, True)
