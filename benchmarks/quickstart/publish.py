"""Take the results of a finished quickstart into the repository: bench.json, one picture, the README's table.

Run after `make demo`: python benchmarks/quickstart/publish.py runs/quickstart/latest
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bevkd_deploy.contracts.files import read_json
from bevkd_deploy.report.markdown import update_readme

HERE = Path(__file__).resolve().parent


def publish(run: Path) -> None:
    """Copy `bench.json` and the first frame's BEV picture beside this file, and rewrite the README's results."""
    source = run / "benchmark" / "bench.json"
    shutil.copyfile(source, HERE / "bench.json")
    shutil.copyfile(sorted((run / "pictures").glob("*.bev.png"))[0], HERE / "bev.png")
    update_readme(HERE.parents[1] / "README.md", read_json(source, "benchmark result"))


if __name__ == "__main__":
    publish(Path(sys.argv[1]))
