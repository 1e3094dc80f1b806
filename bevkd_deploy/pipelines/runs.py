"""Run directories: created once, filled by stages, described by a manifest (architecture of `runs/`)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bevkd_deploy import __version__
from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.errors import ArtifactError, UsageError
from bevkd_deploy.contracts.files import read_json, sha256_file, write_json, write_text
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, dump_resolved, load_recipe
from bevkd_deploy.contracts.sidecar import utc_now

RUNS = Path("runs")
RUN_SCHEMA = "bevkd.run/1"


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path
    loaded: LoadedRecipe

    @property
    def student_weights(self) -> Path:
        """The student that later stages take."""
        return self.path / "checkpoints" / "last.safetensors"

    def require_student(self) -> None:
        """Refuse a run whose student is not trained to the end.

        Raises:
            ArtifactError: it is unfinished, or the run trained something else.
        """
        stages = {stage["name"] for stage in self.manifest()["stages"]}
        if not stages & {"distill", "train-student"} or not self.student_weights.is_file():
            raise ArtifactError(
                f"{self.path} holds no finished student (finished stages: {', '.join(sorted(stages)) or 'none'}). "
                "Finish it with bevkd distill RECIPE --resume, or name another run with --run DIR"
            )

    @property
    def export_dir(self) -> Path:
        """ONNX files, plans, sidecars."""
        return self.path / "export"

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands."""
        content: dict[str, Any] = read_json(self.path / "manifest.json", "run manifest")
        return content

    def record_stage(
        self, name: str, seconds: float, inputs: dict[str, str], outputs: list[Path], **notes: Any
    ) -> None:
        """Add or replace a stage: hashes of what it read and of what it wrote."""
        manifest = self.manifest()
        stage = {
            "name": name,
            "finished": utc_now(),
            "seconds": round(seconds, 2),
            "inputs": inputs,
            "outputs": {os.path.relpath(path, self.path): sha256_file(path) for path in outputs},
            **notes,
        }
        manifest["stages"] = [*[s for s in manifest["stages"] if s["name"] != name], stage]
        write_json(self.path / "manifest.json", manifest)

    def stage(self, name: str) -> dict[str, Any] | None:
        """A recorded stage whose outputs are all still what it wrote, else None."""
        for stage in self.manifest()["stages"]:
            if stage["name"] == name:
                intact = all(_has_hash(self.path / file, digest) for file, digest in stage["outputs"].items())
                return dict(stage) if intact else None
        return None


def create_run(loaded: LoadedRecipe, run_dir: Path | None) -> Run:
    """Make a run directory and make it the latest.

    Raises:
        UsageError: `run_dir` already holds a run.
    """
    path = run_dir or RUNS / loaded.recipe.name / datetime.now().strftime("%Y%m%d-%H%M%S")
    if (path / "manifest.json").exists():
        raise UsageError(f"{path} already holds a run; add --resume to go on with it, or choose another --run-dir")
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "recipe.yaml", loaded.text)
    write_text(path / "recipe.resolved.yaml", dump_resolved(loaded))
    environment = collect_environment()
    write_json(path / "env.json", environment)
    manifest = {
        "schema": RUN_SCHEMA,
        "created": utc_now(),
        "recipe": {
            "name": loaded.recipe.name,
            "sha256": loaded.digest,
            "path": str(loaded.path),
            "overrides": list(loaded.overrides),
        },
        "bevkd": __version__,
        "device": environment["device"],
        "commit": environment["commit"],
        "versions": environment["libraries"],
        "stages": [],
    }
    write_json(path / "manifest.json", manifest)
    run = Run(path, loaded)
    mark_latest(run)
    return run


def open_run(path: Path) -> Run:
    """Read an existing run; its recipe is the resolved one it was made with."""
    if not (path / "manifest.json").is_file():
        raise UsageError(f"{path} is not a run directory: it has no manifest.json")
    made_from = read_json(path / "manifest.json", "run manifest")["recipe"]
    resolved = load_recipe(path / "recipe.resolved.yaml")
    # Paths of the recipe stay relative to the file it came from, not to the copy in the run.
    loaded = LoadedRecipe(
        resolved.recipe, resolved.resolved, resolved.text, Path(made_from["path"]), resolved.digest, resolved.overrides
    )
    return Run(path, loaded)


def latest_run(recipe_name: str | None = None) -> Run:
    """The newest run, of one recipe or of all.

    Raises:
        ArtifactError: there is none under `runs/`.
    """
    link = RUNS / recipe_name / "latest" if recipe_name else RUNS / "latest"
    if not (link / "manifest.json").is_file():
        what = f"of recipe {recipe_name}" if recipe_name else "yet"
        raise ArtifactError(
            f"there is no run {what} under {RUNS}/ in this folder. Start one: bevkd distill recipes/quickstart.yaml, "
            "or name one with --run DIR"
        )
    return open_run(RUNS / link.resolve().relative_to(RUNS.resolve()) if _inside_runs(link) else link.resolve())


def start_or_resume(loaded: LoadedRecipe, run_dir: Path | None, resume: bool) -> Run:
    """A new run, or with `resume` the run in `run_dir` (default: the recipe's latest) if its recipe is the same."""
    if not resume:
        return create_run(loaded, run_dir)
    run = open_run(run_dir) if run_dir else latest_run(loaded.recipe.name)
    if run.loaded.digest != loaded.digest:
        raise UsageError(
            f"{run.path} was made with other settings than {loaded.path} and its overrides give now; resume with the "
            f"same ones, or with its own copy: {run.path / 'recipe.resolved.yaml'}"
        )
    mark_latest(run)
    return Run(run.path, loaded)


def mark_latest(run: Run) -> None:
    """Point `runs/latest` and the recipe's `latest` at a run."""
    RUNS.mkdir(exist_ok=True)
    links = [RUNS / "latest"]
    if run.path.resolve().parent == (RUNS / run.loaded.recipe.name).resolve():
        links.append(run.path.parent / "latest")
    for link in links:
        temporary = link.with_name(f".latest.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(run.path.resolve(), link.parent.resolve()))
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        os.replace(temporary, link)


def _inside_runs(link: Path) -> bool:
    return RUNS.resolve() in link.resolve().parents


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest
