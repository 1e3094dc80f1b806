"""`bevkd recipes` and `bevkd recipes check` in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TOY = Path(__file__).resolve().parents[2] / "fixtures" / "toy.yaml"


def bevkd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bevkd_deploy.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )


def test_a_good_file_is_ok() -> None:
    done = bevkd("recipes", "check", str(TOY))
    assert (done.returncode, done.stdout) == (0, f"{TOY}: ok\n")
    assert done.stderr == f"Next: bevkd distill {TOY}\n"


def test_a_broken_file_prints_every_line(tmp_path: Path) -> None:
    text = TOY.read_text().replace("seed: 3", "sede: 3").replace("{top_k: 50}", "{topk: 50}", 1)
    (tmp_path / "broken.yaml").write_text(text.replace("epochs: 2}", "epochs: 0}").replace("rtx4090", "rtx4080"))
    (tmp_path / "good.yaml").write_text(TOY.read_text())
    done = bevkd("recipes", "check", "good.yaml", "broken.yaml", "absent.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "good.yaml: ok\n"
    lines = done.stderr.splitlines()
    assert lines[:4] == [
        "error: broken.yaml: 4 errors",
        "  5:1  sede   unknown key. Did you mean 'seed'?",
        "  21:12  teacher.model.head.topk   unknown key. Did you mean 'top_k'?",
        "  34:11  student.train.epochs   must be greater than 0, got 0",
    ]
    assert lines[4].startswith(
        "  39:10  export.target   unknown target 'rtx4080'. Did you mean 'rtx4090'? Targets: a10, "
    )
    assert lines[5].startswith("absent.yaml: recipe absent.yaml not found.")
    assert len(lines) == 6


def test_the_list_as_json_holds_every_shipped_recipe() -> None:
    done = bevkd("recipes", "--json")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    assert {"quickstart", "keyframe", "orin_small"} == {row["name"] for row in rows}
    for row in rows:
        assert set(row) == {"name", "description", "data", "target", "student", "path"}
        assert Path(row["path"]).is_file()


def test_the_table_names_target_and_size() -> None:
    done = bevkd("recipes")
    assert done.returncode == 0
    assert "quickstart" in done.stdout
    assert "BEV" in done.stdout
    assert done.stderr.startswith("Next: bevkd distill NAME")
