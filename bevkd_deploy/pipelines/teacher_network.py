"""The network of a recipe's teacher, whatever it comes from."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError, CannotRunHere, UsageError
from bevkd_deploy.contracts.files import read_json, sha256_file, sha256_files, sha256_json, write_json
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_lines import parse_scalar
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, resolved_path
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.models.bevfusion.checkpoint import bevfusion_in, variant_in
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.models.network import Boxes, DetectionNetwork
from bevkd_deploy.models.weights_file import read_weights
from bevkd_deploy.pipelines.runs import RUNS

#: Earlier turns that the configurations of mmdet3d and mit-han-lab add to each frame.
_BEVFUSION_SWEEPS = 9


@dataclass(frozen=True)
class TeacherNetwork:
    """A network, and what it holds.

    Attributes:
        network: in evaluation mode.
        weights: the file its weights were read from; None for one of the student's family, whose weights are loaded,
            or trained, once everything else is known to fit.
        sha256: of that file.
        report: what became of each of its tensors, as JSON values; None where the file fits key by key.
    """

    network: DetectionNetwork
    weights: Path | None = None
    sha256: str | None = None
    report: dict[str, Any] | None = None

    @property
    def spec(self) -> GraphSpec | SensorSpec:
        """Its inputs, and what its maps cover."""
        return self.network.spec


class AbsentNetwork(DetectionNetwork):
    """Stands for a network that cannot run here, but whose outputs were stored elsewhere (`bevkd teacher cache`).

    Boxes come from what was stored; every forward pass is an error.
    """

    def __init__(self, spec: SensorSpec, why: str) -> None:
        super().__init__()
        self.spec = spec
        self.why = why

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Nothing to run.

        Raises:
            CannotRunHere: always.
        """
        raise CannotRunHere(
            f"{self.why}, and the teacher's outputs of this frame are not in its cache: run bevkd teacher cache with "
            "this recipe and these overrides where the teacher runs, and bring the runs folder here"
        )

    def decode(self, maps: dict[str, Tensor]) -> Boxes:
        """The stored boxes."""
        return maps["boxes"], maps["scores"], maps["labels"].long()


def open_teacher(loaded: LoadedRecipe, console: Console) -> TeacherNetwork:
    """Build the recipe's teacher; a foreign one with its weights.

    Raises:
        ArtifactError: checkpoint or configuration is missing, damaged or does not fit.
        CannotRunHere: mmdet3d is needed and not installed, and nothing was stored.
    """
    recipe, teacher = loaded.recipe, loaded.recipe.teacher
    if teacher.source == "native":
        return TeacherNetwork(build_detector(teacher.native_model, recipe.teacher_spec(), recipe.seed))
    assert teacher.checkpoint is not None  # the recipe schema
    weights = resolved_path(loaded, teacher.checkpoint)
    if not weights.is_file():
        raise ArtifactError(f"teacher checkpoint not found: {weights}; set teacher.checkpoint=FILE")
    # Of BEVFusion the whole file is read, once: its hash comes with it.
    file = read_weights(weights) if teacher.source == "bevfusion" else None
    digest = file.sha256 if file else sha256_file(weights)
    if teacher.sha256 is not None and digest != teacher.sha256:
        raise ArtifactError(f"checkpoint {weights} has sha256 {digest}, the recipe expects {teacher.sha256}")
    if file is not None:
        # A LiDAR-only teacher may well teach a student with cameras.
        cameras = recipe.data.cameras if variant_in(file).camera else ()
        network, report = bevfusion_in(file, teacher.geometry or BevFusionGeometry(), cameras)
        for line in report.lines():
            console.print(f"  {line}")
        _tell_sweeps(recipe.data.sweeps, _BEVFUSION_SWEEPS, console)
        return TeacherNetwork(network, weights, digest, report.as_json())
    return TeacherNetwork(_mmdet3d(loaded, weights, digest, console), weights, digest)


def teacher_identity(loaded: LoadedRecipe) -> dict[str, object]:
    """What decides a teacher's outputs beside its weights and inputs, as JSON values."""
    teacher = loaded.recipe.teacher
    identity = teacher.identity()
    if teacher.config is not None:
        config = resolved_path(loaded, teacher.config)
        if not config.is_file():
            raise ArtifactError(f"teacher configuration not found: {config}; set teacher.config=FILE")
        identity["config"] = sha256_files(config_files(config))
    return identity


def config_files(config: Path) -> list[Path]:
    """An mmdet3d configuration and the files that it is based on, found without running it or having mmengine.

    Bases of other packages (`mmdet3d::...`) belong to the installation and are left out.

    Raises:
        ArtifactError: a file is no Python, or computes its `_base_`.
    """
    files = [config]
    try:
        statements = ast.parse(config.read_text(encoding="utf-8")).body
        bases = [ast.literal_eval(statement.value) for statement in statements if _names_bases(statement)]
    except (SyntaxError, ValueError) as error:
        raise ArtifactError(f"teacher configuration {config} cannot be read: {error}") from error
    for named in bases:
        for base in [named] if isinstance(named, str) else named:
            if "::" not in base:
                files += config_files(config.parent / base)
    return files


def _mmdet3d(loaded: LoadedRecipe, weights: Path, digest: str, console: Console) -> DetectionNetwork:
    recipe, teacher = loaded.recipe, loaded.recipe.teacher
    assert teacher.config is not None  # the recipe schema
    stored = RUNS / recipe.name / "teacher-cache" / f"spec-{_spec_key(loaded, digest)}.json"
    if importlib.util.find_spec("mmdet3d") is None:
        why = "mmdet3d, which runs this teacher, is not installed here"
        if teacher.cache is None or not stored.is_file():
            raise CannotRunHere(
                f"{why}. Install it (make mmdet3d in a checkout, or pip install 'bevkd-deploy[mmdet3d]'), or let "
                "another environment store what the teacher says: set teacher.cache in the recipe and run "
                "bevkd teacher cache there"
            )
        return AbsentNetwork(SensorSpec.model_validate(read_json(stored, "teacher description")), why)
    from bevkd_deploy.teachers.mmdet3d_config import Mmdet3dOptions
    from bevkd_deploy.teachers.mmdet3d_model import build_mmdet3d_teacher

    options = Mmdet3dOptions(
        import_paths=tuple(resolved_path(loaded, folder) for folder in teacher.import_paths),
        config_options=_config_options(teacher.cfg_options),
        skip_steps=teacher.skip_steps,
        bev_stride=teacher.bev_stride,
    )
    network = build_mmdet3d_teacher(resolved_path(loaded, teacher.config), weights, recipe.data.cameras, options)
    _tell_sweeps(recipe.data.sweeps, network.inputs.points.sweeps, console)
    if teacher.cache is not None:
        write_json(stored, network.spec.model_dump(mode="json"))
    return network


def _names_bases(statement: ast.stmt) -> TypeGuard[ast.Assign]:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "_base_"


def _tell_sweeps(given: int, trained_with: int, console: Console) -> None:
    """A network of ten turns sees a tenth of its points in one turn, and detects the less for it."""
    if given != trained_with:
        console.print(
            f"  note: this teacher was configured with {trained_with} earlier LiDAR sweeps a frame, the recipe's "
            f"data.sweeps is {given}"
        )


def _config_options(written: Sequence[str]) -> dict[str, Any]:
    options = {}
    for text in written:
        key, sign, value = text.partition("=")
        if not (key and sign):
            raise UsageError(f"teacher.cfg_options: '{text}' is not dotted.key=value")
        try:
            options[key] = parse_scalar(value)
        except ValueError as error:
            raise UsageError(f"teacher.cfg_options: the value of '{text}' is no YAML: {error}") from error
    return options


def _spec_key(loaded: LoadedRecipe, digest: str) -> str:
    """Of what decides the network's description."""
    described = {"weights": digest, "cameras": list(loaded.recipe.data.cameras), **teacher_identity(loaded)}
    return sha256_json(described)[:16]
