"""Peak resident host memory: of this process, and of a fresh process that runs one artefact alone."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from bevkd_deploy.contracts.errors import CannotRunHere
from bevkd_deploy.contracts.graph_spec import TensorSpec
from bevkd_deploy.contracts.sidecar import load_sidecar
from bevkd_deploy.runtime.engine import open_engine

_BYTES_PER_MB = 1_000_000
_STATUS = Path("/proc/self/status")

#: The child imports what a deployed program imports, so that what else the benchmark has loaded does not count.
_CHILD = """
import sys
from bevkd_deploy.benchmark.memory import peak_after_running
sys.stdout.write(str(peak_after_running(sys.argv[1], int(sys.argv[2]) or None)))
"""


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in 10^6 bytes; memory on a GPU is not in it."""
    if _STATUS.is_file():
        # Not getrusage: its maximum survives exec, so a child would report its parent's peak.
        fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024 / _BYTES_PER_MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _BYTES_PER_MB


def artefact_peak_rss_mb(path: Path | str, *, threads: int | None = None) -> float:
    """Peak memory of a fresh process that loads an artefact and runs it, in 10^6 bytes; about a second.

    The interpreter, NumPy, OpenCV and the engine's library are in the number, as they are on a board.

    Raises:
        CannotRunHere: the process did not come to its end.
    """
    command = [sys.executable, "-c", _CHILD, str(path), str(threads or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CannotRunHere(f"memory of {path} could not be measured: {last}")
    return float(done.stdout)


def peak_after_running(path: Path | str, threads: int | None = None) -> float:
    """Load an artefact, run it twice on an empty frame, and read this process's peak; see `artefact_peak_rss_mb`."""
    from bevkd_deploy.runtime import detector  # noqa: F401 a deployed program has the preprocessing loaded as well

    sidecar = load_sidecar(path)
    with open_engine(path, sidecar, threads=threads) as engine:
        feed = {spec.name: _padding(spec, sidecar.graph.pillar_dump_index) for spec in sidecar.inputs}
        for _ in range(2):
            engine.run(feed)
    return peak_rss_mb()


def _padding(spec: TensorSpec, pillar_dump_index: int) -> np.ndarray:
    """An input without content: zeros, and pillars that point to the dump row."""
    return np.full(spec.shape, pillar_dump_index if spec.name == "pillar_index" else 0, dtype=spec.dtype)
