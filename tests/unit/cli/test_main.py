"""The installed `bevkd` command in a process of its own: help, version, exit codes, what --help imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bevkd_deploy import __version__
from bevkd_deploy.cli.main import app

COMMANDS = (
    "doctor", "recipes", "recipes check", "data synth", "data check", "run", "train", "distill", "export", "benchmark",
    "evaluate", "compare", "show",
)  # fmt: skip

#: Slow to import, and not needed to print help.
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "cv2", "pydantic", "yaml", "matplotlib", "scipy")


def bevkd(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, outside a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "bevkd_deploy.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1", **environment},
        check=False,
    )


def test_version() -> None:
    done = bevkd("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"bevkd {__version__}\n", "")


def test_help_lists_every_command() -> None:
    done = bevkd("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command.split()[0]} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert f"Example: bevkd {command}" in done.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['bevkd', '--help']\n"
        "from bevkd_deploy.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_command_suggests_and_exits_2() -> None:
    done = bevkd("distil")
    assert done.returncode == 2
    assert "No such command 'distil'. Did you mean 'distill'?" in done.stderr
    assert done.stdout == ""


def test_no_command_prints_help() -> None:
    assert "Usage: bevkd" in bevkd().stdout


def test_an_error_is_one_line_without_a_traceback() -> None:
    done = bevkd("recipes", "check", "nothing.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing.yaml: recipe nothing.yaml not found")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback() -> None:
    done = bevkd("--debug", "recipes", "check", "nothing.yaml")
    assert "Traceback" in done.stderr
    assert "UsageError: nothing.yaml: recipe nothing.yaml not found" in done.stderr
    assert done.returncode == 2


def doctor_that(statement: str) -> subprocess.CompletedProcess[str]:
    """Run `bevkd doctor` with a diagnosis that runs one statement instead."""
    code = (
        "import sys, types\n"
        f"def diagnose(): {statement}\n"
        "sys.modules['bevkd_deploy.pipelines.doctor'] = types.SimpleNamespace(diagnose=diagnose)\n"
        "sys.argv = ['bevkd', 'doctor']\n"
        "from bevkd_deploy.cli.main import main\n"
        "main()\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_an_interrupt_exits_130() -> None:
    done = doctor_that("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_file_that_cannot_be_opened_is_one_line() -> None:
    done = doctor_that("open('nowhere/file.txt')")
    assert (done.returncode, done.stderr) == (5, "error: nowhere/file.txt: No such file or directory\n")


def test_an_unexpected_error_shows_its_traceback_and_is_no_failed_gate() -> None:
    done = doctor_that("raise ValueError('surprise')")
    assert done.returncode == 5
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().endswith("ValueError: surprise")


def test_a_missing_extra_names_the_install_command() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['bevkd', 'distill', 'nothing.yaml']\n"
        "from bevkd_deploy.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        4,
        "error: torch is not installed; run: pip install 'bevkd-deploy[train]'\n",
    )


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m bevkd_deploy.cli.main recipes --json | head -c 0"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
