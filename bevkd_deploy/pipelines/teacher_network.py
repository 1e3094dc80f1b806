"""The network of a recipe's teacher, whatever it comes from."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError, CannotRunHere, UsageError
from bevkd_deploy.contracts.files import read_json, sha256_file, sha256_json, write_json
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_lines import parse_scalar
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, resolved_path
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.models.bevfusion.checkpoint import bevfusion_variant, read_bevfusion
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.models.network import Boxes, DetectionNetwork
from bevkd_deploy.pipelines.runs import RUNS


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
    digest = sha256_file(weights)
    if teacher.sha256 is not None and digest != teacher.sha256:
        raise ArtifactError(f"checkpoint {weights} has sha256 {digest}, the recipe expects {teacher.sha256}")
    if teacher.source == "bevfusion":
        # A LiDAR-only teacher may well teach a student with cameras.
        cameras = recipe.data.cameras if bevfusion_variant(weights).camera else ()
        network, report = read_bevfusion(weights, teacher.geometry or BevFusionGeometry(), cameras)
        for line in report.lines():
            console.print(f"  {line}")
        return TeacherNetwork(network.eval(), weights, digest, report.as_json())
    return TeacherNetwork(_mmdet3d(loaded, weights, digest), weights, digest)


def teacher_identity(loaded: LoadedRecipe) -> dict[str, object]:
    """What decides a teacher's outputs beside its weights and inputs, as JSON values."""
    teacher = loaded.recipe.teacher
    identity = teacher.identity()
    if teacher.config is not None:
        config = resolved_path(loaded, teacher.config)
        if not config.is_file():
            raise ArtifactError(f"teacher configuration not found: {config}; set teacher.config=FILE")
        identity["config"] = sha256_file(config)
    return identity


def _mmdet3d(loaded: LoadedRecipe, weights: Path, digest: str) -> DetectionNetwork:
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
    if teacher.cache is not None:
        write_json(stored, network.spec.model_dump(mode="json"))
    return network


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
