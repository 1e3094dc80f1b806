"""From the Runner to bevkd's own commands, and back: a run of the student, and our checkpoints to start from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdet3d.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import ArtifactError, UsageError
from bevkd_deploy.mmdet3d.detectors import DETECTOR_PREFIX, BevkdDistillation, BevkdStudent
from bevkd_deploy.mmdet3d.inputs import BevkdInputs
from bevkd_deploy.models.checkpoint import read_weights, require_fit, save_detector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.runs import Run, start_or_resume

#: In `meta` of a checkpoint: the settings of the model that the weights were trained as.
_MODEL_KEY = "bevkd_model"
_SCHEME = "bevkd:"


@HOOKS.register_module()
class BevkdRunHook(Hook):
    """Keeps a bevkd run of the student beside mmengine's checkpoints, and checks what mmengine does not.

    Whenever the Runner saves a checkpoint, its student (averaged, where EMAHook does so) becomes
    `checkpoints/last.safetensors` of the run, which `bevkd export --run` and `bevkd benchmark --run` take when the
    training is over. A checkpoint of another model stops the Runner instead of being loaded in part, and so does a
    dataset whose order of classes is not the one that BevkdInputs was told.
    """

    #: After EMAHook, which exchanges the weights of a checkpoint for their average.
    priority = "VERY_LOW"

    def __init__(self, run_dir: str | None = None) -> None:
        """Name the run.

        Args:
            run_dir: its folder; absent: `bevkd` in the Runner's work_dir. A run of the same recipe is written again.
        """
        self.run_dir = run_dir
        self._run: Run | None = None
        self._start = 0.0

    def before_train(self, runner: Runner) -> None:
        """Check the classes and open the run."""
        _require_same_classes(runner.train_dataloader.dataset)
        if not is_main_process():
            return
        folder = Path(self.run_dir or Path(runner.work_dir) / "bevkd")
        self._run = start_or_resume(_student(runner).loaded, folder, (folder / "manifest.json").is_file())
        self._start = time.monotonic()

    def before_val(self, runner: Runner) -> None:
        """Check the classes."""
        _require_same_classes(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Check the classes."""
        _require_same_classes(runner.test_dataloader.dataset)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Write the student of a checkpoint into the run."""
        model = _student(runner)
        config = model.loaded.recipe.student.model
        checkpoint["meta"][_MODEL_KEY] = config.model_dump(mode="json")
        if self._run is None:
            return
        detector = build_detector(config, model.loaded.recipe.student_spec(), model.loaded.recipe.seed)
        detector.load_state_dict(_student_weights(checkpoint["state_dict"]), strict=True)
        save_detector(self._run.student_weights, detector, config, {"role": "student", "trained_by": "mmengine"})

    def after_train(self, runner: Runner) -> None:
        """Record the training, so that later stages take the student."""
        if self._run is None:
            return
        if not self._run.student_weights.is_file():
            raise UsageError("the training has saved no checkpoint; set default_hooks.checkpoint in the configuration")
        stage = "distill" if isinstance(_student(runner), BevkdDistillation) else "train-student"
        inputs = {"recipe": self._run.loaded.digest}
        self._run.record_stage(
            stage, time.monotonic() - self._start, inputs, [self._run.student_weights], trained_by="mmengine"
        )
        runner.logger.info(f"Next: bevkd export --run {self._run.path} --trt fp16")

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another model, of which mmengine would load what fits and go on.

        Raises:
            ArtifactError: names the settings and keys that differ.
        """
        model = _student(runner)
        made_for = checkpoint.get("meta", {}).get(_MODEL_KEY, {})
        weights = _student_weights(checkpoint.get("state_dict", checkpoint))
        require_fit("given to the Runner", weights, made_for, model.detector, model.loaded.recipe.student.model)


@CheckpointLoader.register_scheme(prefixes=_SCHEME)
def load_from_bevkd(filename: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint of bevkd as one of mmengine: `bevkd:runs/quickstart/latest/checkpoints/last.safetensors`."""
    path = Path(filename.removeprefix(_SCHEME)).expanduser()
    if not path.is_file():
        raise ArtifactError(f"checkpoint not found: {path}")
    tensors, made_for = read_weights(path)
    weights = {DETECTOR_PREFIX + name: tensor for name, tensor in tensors.items()}
    return {"meta": {_MODEL_KEY: made_for}, "state_dict": weights}


def _student(runner: Runner) -> BevkdStudent:
    model: nn.Module = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, BevkdStudent):
        raise UsageError(
            f"BevkdRunHook goes with BevkdStudent and BevkdDistillation, the model is {type(model).__name__}"
        )
    return model


def _student_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's part of a state dict, under its own names."""
    return {
        name.removeprefix(DETECTOR_PREFIX): tensor for name, tensor in state.items() if name.startswith(DETECTOR_PREFIX)
    }


def _require_same_classes(dataset: Any) -> None:
    """Labels travel as numbers from the dataset to BevkdInputs, so both must mean the same."""
    for inner in _wrapped(dataset):
        for transform in getattr(getattr(inner, "pipeline", None), "transforms", ()):
            if isinstance(transform, BevkdInputs) and tuple(inner.metainfo["classes"]) != transform.classes:
                raise UsageError(
                    f"the dataset's classes are {list(inner.metainfo['classes'])}, BevkdInputs was told "
                    f"{list(transform.classes)}; give both the same: metainfo=dict(classes=class_names) in the dataset"
                )


def _wrapped(dataset: Any) -> Iterator[Any]:
    """A dataset and those inside of it (CBGSDataset, RepeatDataset, ConcatDataset)."""
    yield dataset
    for inner in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if inner is not None:
            yield from _wrapped(inner)
