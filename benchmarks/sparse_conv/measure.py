"""What BEVFusion's LiDAR branch costs on a CPU, ours against spconv, on one real nuScenes keyframe.

python benchmarks/sparse_conv/measure.py path/to/nuscenes_keyframe

Two clouds: the keyframe's one turn, and ten turns, for which the keyframe stands ten times, each half a metre on. The
peer is spconv 2 by the backend `spconv` of the same network: with shared pairs, its best (mmdet3d's configuration makes
them again for every block). All of it runs on one thread, since with more spconv's CPU kernels race. Without spconv
there is no peer, and the file says so. Rows take turns; times are the best of the rounds, wall clock and processor
time, which other work on the machine disturbs less; ten turns get a quarter of the rounds. Writes results.json beside
this file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.sparse_encoder import SparseEncoder
from bevkd_deploy.models.bevfusion.sparse_sites import SparseSites, sort_sites
from bevkd_deploy.models.bevfusion.voxels import Voxelization

HERE = Path(__file__).resolve().parent
TURNS = 10
STEP_M = 0.5


def measure(root: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds of each part, and how far the two backends are apart."""
    torch.set_num_threads(1)
    spconv = _spconv_version()
    (path,) = root.glob("*.bin")
    one = torch.from_numpy(np.fromfile(path, dtype=np.float32).reshape(-1, 5))
    ten = torch.cat([one - torch.tensor([0.0, turn * STEP_M, 0.0, 0.0, 0.0]) for turn in range(TURNS)])
    return {
        "environment": collect_environment(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "rounds": rounds,
        "peer": f"spconv {spconv}" if spconv else "none: spconv is not installed",
        "one_turn": _cloud(one, rounds, spconv is not None),
        "ten_turns": _cloud(ten, max(rounds // 4, 1), spconv is not None),
    }


@torch.no_grad()
def _cloud(points: Tensor, rounds: int, with_peer: bool) -> dict[str, Any]:
    geometry = BevFusionGeometry()
    torch.manual_seed(0)
    ours = SparseEncoder(geometry, backend="torch").eval()
    voxelize, count = Voxelization(geometry), torch.tensor([len(points)])
    voxels = voxelize(points[None], count)
    inputs = (voxels.mean(), voxels.frame_coordinates(), 1)
    rows: dict[str, Callable[[], Any]] = {
        "voxelization": lambda: voxelize(points[None], count).mean(),
        "rulebooks": lambda: _rulebooks(ours, inputs[1]),
        "encoder": lambda: ours(*inputs),
    }
    result: dict[str, Any] = {"points": len(points), "voxels": len(inputs[0])}
    if with_peer:
        theirs = SparseEncoder(geometry, backend="spconv").eval()
        theirs.load_state_dict(ours.state_dict())
        expected = theirs(*inputs)
        result["largest_difference"] = float((ours(*inputs) - expected).abs().max() / expected.abs().max())
        rows["encoder_spconv"] = lambda: theirs(*inputs)
    result |= _best_ms(rows, rounds)
    if with_peer:
        result["ours_to_spconv"] = round(result["cpu_ms"]["encoder"] / result["cpu_ms"]["encoder_spconv"], 2)
    return result


def _rulebooks(encoder: SparseEncoder, cells: Tensor) -> SparseSites:
    """The rulebooks that one pass makes: of every kernel once a stage."""
    sites, _ = sort_sites(cells, encoder.shape, 1)
    for stage in encoder.encoder_layers:
        sites.rulebook(stage[0].conv1.kernel)
        if len(stage) == 3:
            sites = sites.rulebook(stage[2][0].kernel).sites
    return sites.rulebook(encoder.conv_out[0].kernel).sites


def _best_ms(rows: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    wall, cpu = dict.fromkeys(rows, float("inf")), dict.fromkeys(rows, float("inf"))
    for _ in range(rounds):
        for name, row in rows.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            row()
            wall[name] = min(wall[name], time.perf_counter() - start)
            cpu[name] = min(cpu[name], time.process_time() - start_cpu)
    return {
        "wall_ms": {name: round(seconds * 1e3, 1) for name, seconds in wall.items()},
        "cpu_ms": {name: round(seconds * 1e3, 1) for name, seconds in cpu.items()},
    }


def _spconv_version() -> str | None:
    try:
        return importlib.metadata.version("spconv")
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    write_json(HERE / "results.json", measure(arguments.root, arguments.rounds))
