"""The table of taps that a dry run shows: what each of them gives in one forward pass of both networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, resolved_path
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.data.dataset import FrameDataset, batched, collate, preprocessor_for
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.distill.tap_report import TapInfo, TappedNetwork, TapReport, report_taps
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.synthetic_frame import synthetic_sensors
from bevkd_deploy.pipelines.teacher_network import TeacherNetwork
from bevkd_deploy.teachers.frozen import FrozenTeacher

Inputs = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class TapTable:
    """A report and what it was made from."""

    report: TapReport
    source: str

    def print(self, console: Console) -> None:
        """One line a tap."""
        table = Table(box=None, pad_edge=False, title=f"Taps, {self.source}", title_justify="left")
        for name in ("loss", "network", "tap", "shape", "dtype", "values", "axes", "grid"):
            table.add_column(name, overflow="fold")
        for loss, role, info in self.report.rows():
            table.add_row(loss, role, escape(info.path), *_cells(info))  # [heatmap] is no markup
        console.print(table)


def tap_table(loaded: LoadedRecipe, samples: list[Sample], opened: TeacherNetwork) -> TapTable:
    """Run teacher and student of a recipe on its first training frame, or on noise where there are no samples.

    The teacher has the weights of its checkpoint where that is here; the student those it starts from.

    Args:
        loaded: the recipe.
        samples: of the training split; may be empty.
        opened: the teacher, from `open_teacher`.

    Raises:
        UsageError: a tap is missing or does not fit (see `report_taps`).
        DataError: the frame's files are damaged.
        ArtifactError: the checkpoint does not fit the recipe.
    """
    recipe = loaded.recipe
    student = build_detector(recipe.student.model, recipe.student_spec(), recipe.seed)
    weights = _load_if_there(loaded, opened)
    teacher = opened.network
    specs = {"student": recipe.student_spec(), "teacher": opened.spec}
    inputs = _frame(samples[:1], specs) if samples else _noise(student.spec, specs, recipe.seed)
    report = report_taps(
        TappedNetwork.student(student, inputs["student"]),
        TappedNetwork.teacher(FrozenTeacher(teacher, teacher.spec), inputs["teacher"]),
        recipe.distill,
    )
    frame = f"frame {samples[0].token} of the training split" if samples else "noise, as there are no frames yet"
    return TapTable(report, f"one forward pass on {frame}; teacher with {weights}, untrained student")


def _load_if_there(loaded: LoadedRecipe, opened: TeacherNetwork) -> str:
    """Weights into a teacher of the student's family, if its checkpoint is here; says which weights it has."""
    if opened.weights is not None:
        return f"weights of {opened.weights.name}"
    teacher = loaded.recipe.teacher
    if teacher.checkpoint is None or not resolved_path(loaded, teacher.checkpoint).is_file():
        return "random weights"
    path = resolved_path(loaded, teacher.checkpoint)
    load_detector(path, opened.network, teacher.native_model, teacher.sha256)
    return f"weights of {path.name}"


def _frame(samples: list[Sample], specs: dict[str, GraphSpec | SensorSpec]) -> Inputs:
    inputs: Inputs = collate([FrameDataset(samples, specs, target_of="student", min_radius_cells=0)[0]])["inputs"]
    return inputs


def _noise(student: GraphSpec, specs: dict[str, GraphSpec | SensorSpec], seed: int) -> Inputs:
    images, points, calibration = synthetic_sensors(student, seed)
    inputs = {}
    for name, spec in specs.items():
        feed = preprocessor_for(spec)([images[camera] for camera in spec.cameras], points, calibration)
        inputs[name] = batched([{key: torch.from_numpy(value) for key, value in feed.items()}])
    return inputs


def _cells(info: TapInfo) -> tuple[str, str, str, str, str]:
    axes, grid = ("image", "camera pixels") if info.layout is None else (info.layout.axis_order, str(info.layout))
    shape = "x".join(str(size) for size in info.shape)
    return shape, info.dtype, f"{info.low:.3g} .. {info.high:.3g}", axes, grid
