"""Where a training is: its stages, and the step that is being made. What a step module is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from bevkd_deploy.contracts.recipe_training import Schedule, TrainConfig


@dataclass(frozen=True)
class Stage:
    """One part of a training, with nothing left to look up.

    Attributes:
        index: 0 for the first stage.
        first_epoch: the epoch it starts with.
        epochs: how many it lasts.
        terms: distillation terms that are on; None: all.
        freeze: globs of module names of the network that is trained.
        learning_rate: the highest.
        schedule: of the learning rate, over this stage.
        warmup_fraction: part of the stage over which the learning rate rises.
    """

    index: int
    first_epoch: int
    epochs: int
    terms: tuple[str, ...] | None
    freeze: tuple[str, ...]
    learning_rate: float
    schedule: Schedule
    warmup_fraction: float

    def has_term(self, name: str) -> bool:
        """Whether a distillation term is on."""
        return self.terms is None or name in self.terms


@dataclass(frozen=True)
class Progress:
    """What a step module's forward is told of the training.

    Attributes:
        step: finished optimizer steps.
        total_steps: of the whole training.
        stage: the current one.
    """

    step: int
    total_steps: int
    stage: Stage

    @classmethod
    def at(cls, fraction: float) -> Progress:
        """Some way into a training of one stage: to call a step module outside of `fit`."""
        stage = Stage(0, 0, 1, None, (), 1e-3, "one_cycle", 0.2)
        return cls(round(fraction * 10_000), 10_000, stage)

    @property
    def fraction(self) -> float:
        """Share of the whole training that is done, 0..1."""
        return self.step / self.total_steps


class StepModule(Protocol):
    """What `fit` trains: an `nn.Module` with a submodule `detector`, the network that is saved."""

    def begin_stage(self, stage: Stage) -> None:
        """Called before the first step of a stage, and after a resume.

        Parameters of terms that are off must get `requires_grad` False here, those of terms that are on True.
        """

    def __call__(self, batch: dict[str, Any], progress: Progress) -> Any:
        """`step.StepLosses`; the sum of its weighted losses is what is minimised."""


def stages_of(config: TrainConfig) -> list[Stage]:
    """The stages of a training section; without any in it, one over all epochs."""
    if not config.stages:
        return [
            Stage(0, 0, config.epochs, None, (), config.learning_rate, config.schedule, config.warmup_fraction)
        ]  # fmt: skip
    stages: list[Stage] = []
    first = 0
    for index, given in enumerate(config.stages):
        stages.append(
            Stage(
                index,
                first,
                given.epochs,
                given.losses,
                given.freeze,
                given.learning_rate or config.learning_rate,
                given.schedule or config.schedule,
                given.warmup_fraction or config.warmup_fraction,
            )
        )
        first += given.epochs
    return stages


@dataclass(frozen=True)
class Plan:
    """The steps of a training.

    Attributes:
        steps_per_epoch: optimizer steps.
        accumulate: batches of a step; the last step of an epoch may have fewer.
        stages: in order.
    """

    steps_per_epoch: int
    accumulate: int
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, config: TrainConfig, frames: int) -> Plan:
        """Plan of a training whose epochs have so many frames.

        Frames that do not fill a batch are left out; fewer frames than one batch make one short batch.
        """
        batches = max(frames // config.batch_size, 1)
        return cls(-(-batches // config.accumulate), config.accumulate, tuple(stages_of(config)))

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return self.steps_per_epoch * sum(stage.epochs for stage in self.stages)

    def steps_of(self, stage: Stage) -> int:
        """Optimizer steps of one stage."""
        return self.steps_per_epoch * stage.epochs

    def stage_at(self, epoch: int) -> Stage:
        """The stage an epoch belongs to; the last one after the end."""
        return [stage for stage in self.stages if stage.first_epoch <= epoch][-1]

    def progress(self, step: int) -> Progress:
        """Where a training is after some steps."""
        return Progress(step, self.total_steps, self.stage_at(step // self.steps_per_epoch))
