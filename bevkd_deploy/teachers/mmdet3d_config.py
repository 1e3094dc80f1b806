"""What an mmdet3d configuration says about its detector: the model, its classes and the steps of its test pipeline."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bevkd_deploy.contracts.errors import CannotRunHere, UsageError

#: What running a configuration, which is Python, or building from it may raise when it is broken.
_BROKEN = (
    SyntaxError, NameError, AttributeError, LookupError, TypeError, ValueError, AssertionError, ImportError, OSError,
    RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class Mmdet3dOptions:
    """What a recipe may say beside the configuration and the checkpoint.

    Attributes:
        import_paths: folders from which the configuration's custom_imports are imported.
        config_options: values to set in the configuration by dotted key, as mmdet3d's --cfg-options.
        skip_steps: steps of the test pipeline that change neither points nor images of the recipe's data.
        bev_stride: voxels along a cell of the head's map, where that cannot be derived.
    """

    import_paths: tuple[Path, ...] = ()
    config_options: Mapping[str, Any] = field(default_factory=dict)
    skip_steps: tuple[str, ...] = ()
    bev_stride: int | None = None


def read_config(path: Path, options: Mmdet3dOptions) -> Any:
    """Read a configuration with mmengine, its `_base_` files and custom_imports included.

    The file is a Python program and is run: read only what you trust.

    Returns:
        mmengine's Config.

    Raises:
        CannotRunHere: mmdet3d is not installed.
        UsageError: there is no such file, it does not run, or its custom_imports fail.
    """
    config_class = _mmengine_config()
    if not path.is_file():
        raise UsageError(f"mmdet3d config not found: {path} (teacher.config)")
    missing = [str(folder) for folder in options.import_paths if not folder.is_dir()]
    if missing:
        raise UsageError(f"teacher.import_paths names no folder: {', '.join(missing)}")
    with importable(options.import_paths):
        try:
            config = config_class.fromfile(path)
        except ImportError as error:
            raise UsageError(_import_message(path, error)) from error
        except _BROKEN as error:
            raise UsageError(f"mmdet3d config {path} cannot be read: {type(error).__name__}: {error}") from error
    config.merge_from_dict(dict(options.config_options))
    if not isinstance(config.get("model"), Mapping):
        raise UsageError(f"mmdet3d config {path} has no model = dict(...): is it a whole config, not a base file?")
    return config


def build_detector_of(config: Any, path: Path, import_paths: Sequence[Path] = ()) -> Any:
    """The detector of a configuration, without downloading what its parts were once initialised with.

    Raises:
        UsageError: mmdet3d cannot build it.
    """
    import mmdet3d.models  # noqa: F401 registers every module
    from mmdet3d.registry import MODELS
    from mmengine.registry import DefaultScope

    model = _without_pretrained(config.model.to_dict())
    with importable(import_paths), DefaultScope.overwrite_default_scope(config.get("default_scope", "mmdet3d")):
        try:
            return MODELS.build(_as_config_dict(model))
        except _BROKEN as error:
            raise UsageError(f"mmdet3d cannot build the model of {path}: {type(error).__name__}: {error}") from error


def class_names(config: Any, path: Path) -> tuple[str, ...]:
    """Classes in the order of the detector's labels.

    Raises:
        UsageError: the configuration does not name them.
    """
    for holder in (_test_dataset(config).get("metainfo"), config.get("metainfo")):
        if holder and holder.get("classes"):
            return tuple(holder["classes"])
    if config.get("class_names"):
        return tuple(config["class_names"])
    raise UsageError(
        f"mmdet3d config {path} does not name its classes, so the order of its labels is not known: give it "
        "metainfo = dict(classes=[...]) in the order that the model was trained with"
    )


def test_pipeline(config: Any, path: Path) -> list[dict[str, Any]]:
    """Steps of the test pipeline in order; those that MultiScaleFlipAug3D wraps stand after it.

    Raises:
        UsageError: there is none, or it asks for test-time augmentation.
    """
    steps = _test_dataset(config).get("pipeline") or config.get("test_pipeline")
    if not steps:
        raise UsageError(f"mmdet3d config {path} has no test pipeline (test_dataloader.dataset.pipeline)")
    flat: list[dict[str, Any]] = []
    for step in steps:
        flat.append(dict(step))
        if step["type"] == "MultiScaleFlipAug3D":
            scales = step.get("pts_scale_ratio", 1)
            if step.get("flip") or (scales not in (1, 1.0, [1], [1.0])):
                raise UsageError(f"mmdet3d config {path} augments while testing (MultiScaleFlipAug3D): use one without")
            flat += [dict(inner) for inner in step["transforms"]]
    return flat


@contextmanager
def importable(folders: Sequence[Path]) -> Iterator[None]:
    """Folders on Python's search path, in front, while the context is open."""
    added = [str(folder.resolve()) for folder in folders]
    before = list(sys.path)
    sys.path[:0] = added
    try:
        yield
    finally:
        sys.path[:] = before


def _mmengine_config() -> Any:
    try:
        import mmdet3d  # noqa: F401 its version checks of mmcv and mmdet run here
        from mmengine.config import Config
    except (ImportError, AssertionError) as error:
        raise CannotRunHere(
            f"a teacher with source: mmdet3d needs mmdet3d, which cannot be imported here ({error}). `make mmdet3d` in "
            "a checkout sets up an environment that has it; elsewhere install mmcv with its operators and the extra: "
            "pip install 'bevkd-deploy[mmdet3d]'"
        ) from error
    return Config


def _import_message(path: Path, error: ImportError) -> str:
    reason = str(error.__cause__ or error.__context__ or error).splitlines()[0]
    return (
        f"mmdet3d config {path}: its imports fail: {reason}. Name the folder that holds the package in "
        "teacher.import_paths, and compile the package's operators where it has some. (A BEVFusion checkpoint needs "
        "neither: source: bevfusion)"
    )


def _test_dataset(config: Any) -> Mapping[str, Any]:
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    while "dataset" in dataset:  # a wrapper, such as a repeated one
        dataset = dataset["dataset"]
    found: Mapping[str, Any] = dataset
    return found


def _without_pretrained(model: Any) -> Any:
    """A copy without init_cfg of type Pretrained: the checkpoint holds those weights, and this one is a download."""
    if isinstance(model, Mapping):
        init = model.get("init_cfg")
        pretrained = isinstance(init, Mapping) and init.get("type") == "Pretrained"
        return {
            key: None if pretrained and key == "init_cfg" else _without_pretrained(value)
            for key, value in model.items()
        }
    if isinstance(model, (list, tuple)):
        return type(model)(_without_pretrained(value) for value in model)
    return model


def _as_config_dict(model: Any) -> Any:
    from mmengine.config import ConfigDict

    return ConfigDict(model)  # detectors read their sections by attribute
