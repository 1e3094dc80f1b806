"""One process of a training of the tiny world: `python fit_process.py JOB.json`, alone or under torchrun.

A job can kill its own process: {"die": ["step", 5]} at the end of step 5, ["write", n] with half of the n-th state
written, ["rename", n] just before that state takes its place, ["weights", n] after it and before the weights, and
["evaluate", n] in the n-th evaluation.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bevkd_deploy.contracts import files
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_distill import DistillConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import AugmentationConfig, TrainConfig
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.data.source import open_split
from bevkd_deploy.distill import event_log, processes, training_state
from bevkd_deploy.distill.loop import LoopHooks, fit
from bevkd_deploy.distill.step import DistillationStep, TrainingStep
from bevkd_deploy.distill.tap_report import TappedNetwork, report_taps
from bevkd_deploy.distill.training_state import TrainingState
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.teachers.frozen import FrozenTeacher

CAMERAS = ("CAM_FRONT", "CAM_BACK")


class Death:
    """Kills this process at the n-th time that it reaches a place."""

    def __init__(self, place: str, number: int) -> None:
        self.place, self.left = place, number

    def at(self, place: str) -> bool:
        if place == self.place:
            self.left -= 1
        return place == self.place and self.left == 0

    def now(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def arm(death: Death) -> None:
    """Put death into the write and the rename of the state."""
    save, replace = torch.save, os.replace

    def write(content: Any, path: Any, **options: Any) -> None:
        save(content, path, **options)
        if isinstance(path, Path) and "state.pt" in path.name and death.at("write"):
            half = path.read_bytes()[: path.stat().st_size // 2]
            path.write_bytes(half)
            death.now()

    def rename(source: Any, target: Any) -> None:
        if Path(target).name == "state.pt" and death.at("rename"):
            death.now()
        replace(source, target)

    training_state.torch.save = write  # type: ignore[assignment]
    files.os.replace = rename  # type: ignore[assignment]


def watch(dataset: FrameDataset) -> list[int]:
    """The positions that this process reads (with workers they read, and the list stays empty)."""
    taken: list[int] = []

    class Watched(FrameDataset):
        def __getitem__(self, position: int) -> dict[str, Any]:
            taken.append(position)
            return super().__getitem__(position)

    dataset.__class__ = Watched
    return taken


def step_module(job: dict[str, Any], dataset: FrameDataset) -> nn.Module:
    student = build_detector(ModelConfig(**job["student"]), dataset.specs["student"], 0)
    if job["distill"] is None:
        return TrainingStep(student, "student")
    spec = dataset.specs["teacher"]
    teacher = FrozenTeacher(build_detector(ModelConfig(**job["teacher"]), spec, 1), spec)
    config = DistillConfig(**job["distill"])
    inputs = collate([dataset[0]])["inputs"]
    taps = report_taps(
        TappedNetwork.student(student, inputs["student"]), TappedNetwork.teacher(teacher, inputs["teacher"]), config
    )
    torch.manual_seed(3)
    return DistillationStep(student, teacher, config, taps)


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    event_log.EVENT_EVERY_STEPS = 1
    folder = Path(job["folder"])
    samples = open_split(DataConfig(source="nuscenes", root="unused"), Path(job["world"]), "train")
    models = {"student": ModelConfig(**job["student"]), "teacher": ModelConfig(**job["teacher"])}
    specs = {name: model.graph_spec(CAMERAS) for name, model in models.items()}
    augmentation = AugmentationConfig(flip_x=True, rotation_rad=0.4)
    dataset = FrameDataset(samples, specs, target_of="student", min_radius_cells=1, augmentation=augmentation)
    module = step_module(job, dataset)
    taken = watch(dataset)
    death = Death(*job.get("die", ["never", 0]))
    arm(death)

    def on_step(step: int, total: int, losses: dict[str, float]) -> None:
        if death.place == "step" and step == death.left:
            death.now()

    def save_weights(module: nn.Module) -> None:
        if death.at("weights"):
            death.now()
        state = module.get_submodule("detector").state_dict()
        files.write_atomic(folder / "weights.pt", lambda temporary: torch.save(state, temporary))

    def on_epoch(finished: int) -> dict[str, float]:
        if death.at("evaluate"):
            death.now()
        weights = module.get_submodule("detector").state_dict().values()
        return {"mAP": float(sum(value.double().abs().sum() for value in weights))}  # of the weights that are saved

    fit(
        module,
        dataset,
        TrainConfig(**job["train"]),
        seed=0,
        run_dir=folder,
        state=TrainingState(folder / "state.pt", "key"),
        resume=job.get("resume", False),
        hooks=LoopHooks(on_step, on_epoch, save_weights),
    )
    each = processes.gather({"drawn": float(torch.rand(())), "taken": taken})
    if processes.is_main():
        (folder / "each.json").write_text(json.dumps(each))


if __name__ == "__main__":
    with processes.joined():
        main(json.loads(Path(sys.argv[1]).read_text()))
