"""The data stage: make or find the dataset of a recipe, and identify it by a hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.files import read_json, sha256_files, sha256_json
from bevkd_deploy.contracts.recipe import Recipe, SyntheticConfig
from bevkd_deploy.contracts.recipe_loader import resolve_data_root
from bevkd_deploy.data.index_cache import Listener, index_key
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.source import Split, open_split
from bevkd_deploy.data.synthetic import write_dataset
from bevkd_deploy.data.synthetic.dataset import GENERATOR_VERSION
from bevkd_deploy.pipelines.progress import bar, late_bar


def prepare_data(recipe: Recipe, console: Console) -> Path:
    """Root of the recipe's dataset; a synthetic one is written on first use.

    Raises:
        DataError: the root is missing, or holds another synthetic dataset than the recipe describes.
    """
    root = resolve_data_root(recipe)
    if recipe.data.source != "synthetic":
        if not root.is_dir():
            raise DataError(f"data root {root} does not exist; set it with data.root=/path/to/dataset")
        return root
    settings = recipe.data.synthetic
    assert settings is not None  # the recipe schema demands it for this source
    if not root.exists() or not any(root.iterdir()):
        total = settings.train_scenes + settings.val_scenes
        with bar(console, f"writing the synthetic world to {root}", total) as progress:
            write_dataset(
                root,
                profile=settings.profile,
                difficulty=settings.difficulty,
                train_scenes=settings.train_scenes,
                val_scenes=settings.val_scenes,
                seed=settings.seed,
                on_scene=lambda done, _: progress.update(done),
                workers=2,
            )
    _check_synthetic(root, settings)
    return root


def data_digest(recipe: Recipe, root: Path) -> str:
    """Hash of what the dataset says it holds: info files, or the tables and the splits."""
    if recipe.data.source == "mmdet3d_infos":
        patterns = {str(recipe.data.train_infos), str(recipe.data.val_infos)}
        return sha256_files(sorted({path for pattern in patterns for path in root.glob(pattern)}))
    own = [path for path in (root / "splits.json", root / "dataset.json") if path.is_file()]
    return sha256_json([index_key(root, recipe.data.version), sha256_files(own)])


def reading_settings(recipe: Recipe) -> dict[str, Any]:
    """What else decides the frames that are read from one dataset, apart from the cameras; only what is not default.

    Beside `data_digest` in a key, it tells apart two readings of the same files.
    """
    keys = {"train_split", "val_split", "sweeps", "on_error", "sensors"}
    return recipe.data.model_dump(mode="json", include=keys, exclude_defaults=True)


def read_split(recipe: Recipe, root: Path, split: Split, console: Console) -> list[Sample]:
    """Samples of one of the recipe's splits; a bar shows where the tables take more than two seconds to read."""
    with late_bar(console) as progress:
        return open_split(recipe.data, root, split, Listener(progress, lambda line: console.print(f"  {line}")))


def _check_synthetic(root: Path, settings: SyntheticConfig) -> None:
    where = root / "dataset.json"
    if not where.is_file():
        raise DataError(f"{root} exists but is no synthetic dataset (no dataset.json); remove it or change data.root")
    made = read_json(where, "dataset description")
    found = {
        "profile": made["profile"]["name"],
        "difficulty": made["profile"].get("difficulty", {"name": "not recorded"})["name"],  # absent before generator 2
        "train_scenes": made["scenes"]["train"],
        "val_scenes": made["scenes"]["val"],
        "seed": made["seed"],
        "generator": made["generator_version"],
    }
    wanted = {**settings.model_dump(), "generator": GENERATOR_VERSION}
    differences = [f"{key} is {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    if differences:
        raise DataError(
            f"{root} holds another synthetic dataset: {'; '.join(differences)}. Choose another data.root, or remove it"
        )
