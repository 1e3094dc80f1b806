"""BEVFusion's whole forward pass on a real keyframe against mmdet3d's own, in one process, and that they agree.

python benchmarks/bevfusion/measure.py KEYFRAME_ROOT --project mmdetection3d/projects/BEVFusion

Needs mmdet3d's environment (`make mmdet3d`), spconv 2.3.8 in it and a checkout of mmdetection3d. mmdet3d's CUDA
extensions have plain stand-ins (peer.py), and spconv runs on one thread: with more its CPU kernels race and are wrong.
Both networks hold the same closed-form weights and take turns; ours begins with uint8 images, theirs with normalised
ones. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import peer
import torch
from torch import Tensor, nn

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.detector import BevFusion

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parents[1] / "tests" / "unit" / "models" / "bevfusion" / "golden.py"

#: Modules whose outputs are compared; both networks have them.
COMPARED = ("view_transform", "pts_middle_encoder", "fusion_layer", "pts_neck")
#: Modules that are timed, each a part of the pass that the next one waits for.
TIMED = (
    "img_backbone", "img_neck", "view_transform", "pts_voxel_layer", "pts_middle_encoder", "fusion_layer",
    "pts_backbone", "pts_neck", "bbox_head",
)  # fmt: skip


def load_golden() -> ModuleType:
    """The weights and inputs of the golden test."""
    spec = importlib.util.spec_from_file_location("golden", GOLDEN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def listening(model: nn.Module, seconds: dict[str, float], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Collect the time of every module of TIMED and what those of COMPARED return."""
    starts: dict[str, float] = {}
    handles = []

    def begin(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            starts[name] = time.perf_counter()

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seconds[name] = time.perf_counter() - starts[name]
            if name in COMPARED:
                outputs[name] = output[0] if isinstance(output, list) else output

        return hook

    for name in TIMED:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end(name))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def timed(model: nn.Module, run: Callable[[], Any]) -> tuple[dict[str, float], dict[str, Tensor], Any]:
    """Seconds of a pass and of its modules, the compared outputs, and what the pass returned."""
    seconds: dict[str, float] = {}
    outputs: dict[str, Tensor] = {}
    with listening(model, seconds, outputs):
        start = time.perf_counter()
        result = run()
        seconds["whole"] = time.perf_counter() - start
    return seconds, outputs, result


def box_agreement(ours: tuple[Tensor, Tensor, Tensor], theirs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """Largest difference between each of their boxes and scores and the nearest of ours of the same class."""
    our_rows = torch.cat([ours[0], ours[1][:, None]], dim=1)
    their_rows = torch.cat([theirs[0], theirs[1][:, None]], dim=1)
    distance = (their_rows[:, None] - our_rows[None]).abs().amax(dim=2)
    distance = distance.masked_fill(theirs[2][:, None] != ours[2][None], torch.inf)
    nearest = distance.min(dim=1)
    return {
        "theirs": len(their_rows),
        "ours": int((ours[1] > 0).sum()),
        "distinct_matches": len(nearest.indices.unique()),
        "largest_difference": float(nearest.values.max()),
    }


def relative(ours: Tensor, theirs: Tensor) -> float:
    """L2 norm of the difference over that of theirs."""
    return float((ours - theirs).norm() / theirs.norm())


def summary(values: list[float]) -> dict[str, float]:
    """Seconds over the rounds."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "n": len(values)}


def measure(root: Path, project: Path, rounds: int) -> dict[str, Any]:
    """Take turns, the first round not counted."""
    golden = load_golden()
    inputs = golden.keyframe_inputs(root)
    network = BevFusion(BevFusionGeometry(), camera="swin_t").eval()
    weights = golden.closed_form_weights(network.state_dict())
    network.load_state_dict(weights, strict=True)
    theirs = peer.build(project)
    peer.copy_weights(theirs, weights)
    batch, samples = peer.prepared(inputs, network.image_mean, network.image_std)

    def ours() -> dict[str, Tensor]:
        with torch.no_grad():
            return network(**inputs)

    arms = {"bevkd": (network, ours), "mmdet3d": (theirs, lambda: peer.predict(theirs, batch, samples))}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in arms}
    kept: dict[str, tuple[dict[str, Tensor], Any]] = {}
    for turn in range(rounds + 1):
        for name, (model, run) in arms.items():
            seconds, outputs, result = timed(model, run)
            kept[name] = outputs, result
            for part, value in seconds.items() if turn else ():
                times[name].setdefault(part, []).append(value)
    (our_maps, maps), (their_maps, boxes) = kept["bevkd"], kept["mmdet3d"]
    whole = {name: parts["whole"] for name, parts in times.items()}
    return {
        "seconds": {name: {part: summary(values) for part, values in parts.items()} for name, parts in times.items()},
        "ours_to_theirs": {
            "of_minima": min(whole["bevkd"]) / min(whole["mmdet3d"]),
            "median_of_rounds": statistics.median(a / b for a, b in zip(whole["bevkd"], whole["mmdet3d"], strict=True)),
        },
        "relative_difference": {name: relative(our_maps[name], their_maps[name]) for name in COMPARED},
        "boxes": box_agreement(tuple(part[0] for part in network.decode(maps)), boxes),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the keyframe")
    parser.add_argument("--project", type=Path, required=True, help="projects/BEVFusion of a mmdetection3d checkout")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # spconv's own OpenMP reads it when it is loaded; torch is told below
    runs = {}
    load = list(os.getloadavg())
    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        runs[f"threads_{threads}"] = measure(given.root, given.project.resolve(), given.rounds)
    result = {
        "environment": {**collect_environment(), "load_average_at_start": load},
        "peers": {name: importlib.metadata.version(name) for name in ("mmcv", "mmdet", "mmdet3d", "spconv")},
        "input": "6 cameras of 256x704, one LiDAR turn of the keyframe",
        **runs,
    }
    print(write_json(HERE / "results.json", result))  # noqa: T201  a script


if __name__ == "__main__":
    main()
