"""What a distillation would do: stages, inputs found or missing, sizes. Nothing is written or trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bevkd_deploy.contracts.errors import BevkdError
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_distill import TapLossConfig
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, resolve_data_root, resolved_path
from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.contracts.target import load_target
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.source import Split, open_split
from bevkd_deploy.models.detector import FusionDetector, parameter_count
from bevkd_deploy.models.network import DetectionNetwork
from bevkd_deploy.pipelines.tap_table import tap_table
from bevkd_deploy.pipelines.teacher_network import open_teacher


@dataclass(frozen=True)
class _Line:
    stage: str
    state: str
    detail: str


def print_plan(loaded: LoadedRecipe, console: Console) -> None:
    """Print one line per stage and input, then sizes."""
    recipe = loaded.recipe
    console.print(f"{loaded.path}: recipe {recipe.name}, {recipe.description}")
    for override in loaded.overrides:
        console.print(f"  override {override}")
    opened = open_teacher(loaded, console)
    taps = tap_table(loaded, _training_samples(loaded), opened)  # before anything else: it fails where a tap does
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "state", "detail"):
        table.add_column(name, overflow="fold")
    student = FusionDetector(recipe.student.model, recipe.student_spec())
    lines = [*_data_lines(loaded), _teacher_line(loaded), *_model_lines(recipe, opened.network, student)]
    lines += [*_loss_lines(recipe), _export_line(loaded)]
    for line in lines:
        table.add_row(line.stage, line.state, escape(line.detail))  # a tap's [heatmap] is no markup
    console.print(table)
    taps.print(console)
    missing = [line.stage for line in lines if line.state == "missing"]
    verdict = f"missing: {', '.join(missing)}" if missing else "everything is there"
    console.print(f"{verdict}. Nothing was written (dry run).")


def _data_lines(loaded: LoadedRecipe) -> list[_Line]:
    recipe = loaded.recipe
    try:
        root = resolve_data_root(recipe)
    except BevkdError as error:
        return [_Line("data", "missing", str(error))]
    settings = recipe.data.synthetic
    if settings and not root.exists():
        scenes = f"{settings.train_scenes} + {settings.val_scenes} scenes of profile {settings.profile}"
        return [_Line("data", "to be made", f"{root}: {scenes}")]
    splits: tuple[Split, ...] = ("train", "val")
    return [_split_line(loaded, root, split) for split in splits]


def _training_samples(loaded: LoadedRecipe) -> list[Sample]:
    """The training split, or nothing where the data is not here (which `_data_lines` reports)."""
    try:
        return open_split(loaded.recipe.data, resolve_data_root(loaded.recipe), "train")
    except BevkdError:
        return []


def _split_line(loaded: LoadedRecipe, root: Path, split: Split) -> _Line:
    try:
        samples = open_split(loaded.recipe.data, root, split)
    except BevkdError as error:
        return _Line(f"data {split}", "missing", str(error))
    scenes = len({sample.scene for sample in samples})
    return _Line(f"data {split}", "found", f"{root}: {len(samples)} frames of {scenes} scenes")


def _teacher_line(loaded: LoadedRecipe) -> _Line:
    teacher = loaded.recipe.teacher
    if teacher.checkpoint is None:
        assert teacher.train is not None  # the recipe schema: a checkpoint or a training
        return _Line("teacher", "to be trained", _schedule(teacher.train))
    path = resolved_path(loaded, teacher.checkpoint)
    if not path.is_file():
        return _Line("teacher", "missing", f"checkpoint {path}; set teacher.checkpoint=FILE")
    return _Line("teacher", "found", f"{path}, {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256_file(path)[:12]}")


def _model_lines(recipe: Recipe, teacher: DetectionNetwork, student: FusionDetector) -> list[_Line]:
    lines = []
    networks: tuple[tuple[str, DetectionNetwork], ...] = (("teacher", teacher), ("student", student))
    for who, detector in networks:
        size = f"{parameter_count(detector) / 1e6:.2f} M parameters"
        lines.append(_Line(f"{who} model", size, _geometry(detector.spec)))
    for who, model in (("teacher", recipe.teacher.model), ("student", recipe.student.model)):
        weights = model.camera.pretrained if model else None
        if weights:
            state = "found" if Path(weights).is_file() else "missing"
            lines.append(_Line(f"{who} backbone", state, f"{weights} (torchvision keys)"))
    lines.append(_Line("distill", "to be run", _schedule(recipe.student.train)))
    return lines


def _loss_lines(recipe: Recipe) -> list[_Line]:
    lines = []
    for name, term in recipe.distill.losses.enabled().items():
        detail = "between the heads, by class name"
        if isinstance(term, TapLossConfig):
            detail = f"student {term.student} <- teacher {term.teacher}"
        lines.append(_Line(f"loss {name}", f"weight {term.weight}", detail))
    if recipe.distill.labels:
        lines.append(
            _Line("labels", "added", f"boxes of the teacher with a score of {recipe.distill.labels.min_score:g}")
        )
    if recipe.distill.inherit:
        lines.append(_Line("inherit", "at the start", f"the teacher's {', '.join(recipe.distill.inherit.parts)}"))
    return lines


def _export_line(loaded: LoadedRecipe) -> _Line:
    export = loaded.recipe.export
    target = load_target(export.target)
    return _Line("export", "to be run", f"{', '.join(export.precisions)} ONNX, plan for {target.name} (SM {target.sm})")


def _schedule(train: TrainConfig) -> str:
    return f"{train.epochs} epochs, batch {train.batch_size}, {train.precision}, learning rate {train.learning_rate:g}"


def _geometry(spec: GraphSpec | SensorSpec) -> str:
    rows, columns = spec.bev_shape_yx
    parts = [f"{len(spec.cameras)}x{spec.image_height_px}x{spec.image_width_px} images"] if spec.cameras else []
    if isinstance(spec, GraphSpec):
        parts.append(f"{spec.pillar_size_m:g} m pillars (at most {spec.max_pillars})")
    return ", ".join([*parts, f"BEV {rows}x{columns} of {spec.bev_cell_m:g} m"])
