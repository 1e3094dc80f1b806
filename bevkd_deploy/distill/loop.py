"""The training loop: one or several processes, resumable at any step, stopped cleanly by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from bevkd_deploy.contracts.errors import Interrupted, UsageError
from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.events import DroppedSensor
from bevkd_deploy.data.loader import frame_loader
from bevkd_deploy.data.sampling import EpochSampler
from bevkd_deploy.distill import processes
from bevkd_deploy.distill.engine import Engine
from bevkd_deploy.distill.event_log import EventLog
from bevkd_deploy.distill.progress import Plan
from bevkd_deploy.distill.training_state import TrainingState, seed_draws


@dataclass(frozen=True)
class LoopHooks:
    """What the loop tells its caller. Of several processes only the main one calls them.

    Attributes:
        on_step: after each optimizer step, with step, total steps and the losses of that step.
        on_epoch: after each epoch, with the number of finished epochs, while the network has the weights that are
            saved; returns what an evaluation found, for the log. Called again by a resume from an epoch's end.
        save_weights: writes the network's weights; called with every state that is saved.
        on_dropped: with the sensors that the frames of a step go without (`data.on_error: drop_sensor`).
    """

    on_step: Callable[[int, int, dict[str, float]], None]
    on_epoch: Callable[[int], dict[str, float] | None]
    save_weights: Callable[[nn.Module], None]
    on_dropped: Callable[[list[DroppedSensor]], object] = lambda _: None


def fit(
    step_module: nn.Module,
    dataset: FrameDataset,
    config: TrainConfig,
    *,
    seed: int,
    run_dir: Path,
    state: TrainingState,
    resume: bool,
    hooks: LoopHooks,
) -> None:
    """Train until the last epoch is done.

    Started by torchrun or accelerate launch, every process calls it alike: the batches of `config` are dealt to them,
    and the main one writes the files.

    Args:
        step_module: a `progress.StepModule`; all its parameters are optimised, its `detector` is averaged and saved.
        dataset: training frames.
        config: schedule.
        seed: of shuffling and of every random draw in the step.
        run_dir: gets `events.jsonl` and `tb/`.
        state: where the resumable state lives.
        resume: go on from `state` instead of starting at step 0.
        hooks: callbacks.

    Raises:
        NonFiniteError: a loss or the gradient is NaN or infinite; names the term and the samples.
        CannotRunHere: this device cannot train in the precision of `config`.
        UsageError: a batch cannot be dealt to the processes, or a stage freezes what is not there.
        Interrupted: Ctrl-C; the state was saved.
    """
    accelerator = processes.accelerator()
    sampler = EpochSampler.of_training(dataset.samples, config, seed)
    _check_share(config.batch_size, len(sampler))
    seed_draws(seed, processes.rank())
    plan = Plan.of(config, len(sampler))
    loader = accelerator.prepare(frame_loader(dataset, sampler, batch_size=config.batch_size, workers=config.workers))
    engine = Engine(step_module, config, plan, accelerator.device)
    if resume:
        engine.restore(state.load())
    run = _Run(engine, state, hooks, EventLog(run_dir, processes.is_main(), engine.done if resume else None))
    with _ctrl_c() as asked, run.events:
        run.begin(resume)
        for epoch in range(engine.done // plan.steps_per_epoch, config.epochs):
            engine.begin_epoch(epoch)
            sampler.begin(epoch)
            for group in _groups(_rest(accelerator, loader, engine, epoch), config.accumulate):
                run.step(group, epoch)
                if processes.sum_over_processes(torch.tensor(asked(), dtype=torch.int32, device=engine.device)):
                    run.save()
                    raise Interrupted(
                        f"stopped at step {engine.done} of {plan.total_steps}; the state is saved, go on with --resume"
                    )
                if config.checkpoint_every_steps and engine.done % config.checkpoint_every_steps == 0:
                    run.save()
            run.save()
            run.end_epoch()


class _Run:
    """A training and everything that it writes."""

    def __init__(self, engine: Engine, state: TrainingState, hooks: LoopHooks, events: EventLog) -> None:
        self.engine, self.state, self.hooks, self.events = engine, state, hooks, events

    def begin(self, resumed: bool) -> None:
        """Make good what a kill between two files left undone."""
        if processes.is_main():
            self.state.clean()
        if not resumed:
            return
        self._save_weights()
        if self.engine.done and self.engine.done % self.engine.plan.steps_per_epoch == 0:
            self.end_epoch()

    def step(self, group: list[dict[str, Any]], epoch: int) -> None:
        """One optimizer step, and its events."""
        record = self.engine.step(group)
        done = self.engine.done
        dropped = [event for batch in group for event in batch["dropped"]]
        if processes.sum_over_processes(torch.tensor(len(dropped), device=self.engine.device)):
            dropped = [event for part in processes.gather(dropped) for event in part]
        self.events.dropped(done, dropped)
        self.events.step(done, epoch, self.engine.learning_rate, record)
        if processes.is_main():
            self.hooks.on_dropped(dropped)
            self.hooks.on_step(done, self.engine.plan.total_steps, record.losses)

    def save(self) -> None:
        """State, then weights: a resumed run writes the weights again."""
        content = self.engine.state_dict()
        if processes.is_main():
            self.state.save(content)
        self._save_weights()

    def _save_weights(self) -> None:
        if processes.is_main():
            with self.engine.averaged():
                self.hooks.save_weights(self.engine.module)
        processes.wait()

    def end_epoch(self) -> None:
        """Let the caller evaluate; the other processes wait."""
        finished = self.engine.done // self.engine.plan.steps_per_epoch
        if processes.is_main():
            with self.engine.averaged():
                metrics = self.hooks.on_epoch(finished)
            if metrics is not None:
                self.events.evaluation(self.engine.done, finished, metrics)
        processes.wait()


def _check_share(batch_size: int, frames: int) -> None:
    count = processes.count()
    if batch_size % count:
        raise UsageError(
            f"a batch of {batch_size} frames cannot be dealt to {count} processes evenly; set train.batch_size to a "
            f"multiple of {count}"
        )
    if count > 1 and frames < batch_size:
        raise UsageError(
            f"{frames} frames an epoch are less than a batch of {batch_size}, which {count} processes need whole; "
            "lower train.batch_size, raise train.repeat, or start one process"
        )


def _rest(accelerator: Accelerator, loader: Any, engine: Engine, epoch: int) -> Iterable[dict[str, Any]]:
    """The batches of an epoch that are still to come."""
    skip = (engine.done - epoch * engine.plan.steps_per_epoch) * engine.plan.accumulate
    batches: Iterable[dict[str, Any]] = accelerator.skip_first_batches(loader, skip) if skip else loader
    return batches


def _groups(batches: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Batches in groups of one optimizer step; the last group takes what is left."""
    group: list[dict[str, Any]] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop after the current step; a second one stops at once."""
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
