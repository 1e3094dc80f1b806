"""The training loop: accelerate, one-cycle AdamW, resumable at any step, stopped cleanly by Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from bevkd_deploy.contracts.errors import ArtifactError, Interrupted, NonFiniteError
from bevkd_deploy.contracts.files import write_atomic
from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.events import DropLog, DroppedSensor
from bevkd_deploy.data.loader import frame_loader
from bevkd_deploy.data.sampling import EpochSampler
from bevkd_deploy.distill.step import StepLosses

_EVENT_EVERY_STEPS = 10


@dataclass(frozen=True)
class LoopHooks:
    """What the loop tells its caller.

    Attributes:
        on_step: after each optimizer step, with step, total steps and the losses of that step.
        on_epoch: after each epoch, with the number of finished epochs and the step module.
        save_weights: writes the network's weights; called with every state that is saved.
        on_dropped: with the sensors that the frames of a batch go without (`data.on_error: drop_sensor`).
    """

    on_step: Callable[[int, int, dict[str, float]], None]
    on_epoch: Callable[[int], None]
    save_weights: Callable[[nn.Module], None]
    on_dropped: Callable[[list[DroppedSensor]], object] = lambda _: None


@dataclass(frozen=True)
class StepRecord:
    """What is logged of a step: the weighted losses and their sum, and of each distillation term more."""

    losses: dict[str, float]
    raw: dict[str, float]
    weights: dict[str, float]
    gradient_norms: dict[str, float]


@dataclass
class TrainingState:
    """Everything a resumed run needs, in one file, so that no kill can leave half of it."""

    path: Path
    key: str

    def save(self, content: dict[str, Any]) -> None:
        """Write atomically."""
        write_atomic(self.path, lambda temporary: torch.save({"key": self.key, **content}, temporary))

    def load(self) -> dict[str, Any]:
        """Read what `save` wrote.

        Raises:
            ArtifactError: there is nothing to resume, or it belongs to another recipe.
        """
        if not self.path.is_file():
            raise ArtifactError(f"nothing to resume: {self.path} does not exist; start without --resume")
        content: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        if content["key"] != self.key:
            raise ArtifactError(
                f"{self.path} belongs to another recipe, data or teacher (key {content['key'][:12]}, this run has "
                f"{self.key[:12]}); start a new run, or restore the recipe it was made with"
            )
        return content


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

    Args:
        step_module: `forward(batch, progress)` returns weighted losses; all its parameters are optimised.
        dataset: training frames.
        config: schedule.
        seed: of shuffling and of every random draw in the step.
        run_dir: gets `events.jsonl` and `tb/`.
        state: where the resumable state lives.
        resume: go on from `state` instead of starting at step 0.
        hooks: callbacks.

    Raises:
        NonFiniteError: a loss is NaN or infinite; names the term and the samples.
        Interrupted: Ctrl-C; the state was saved.
    """
    accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no")
    torch.manual_seed(seed)
    sampler = EpochSampler.of_training(dataset.samples, config, seed)
    optimizer = torch.optim.AdamW(step_module.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    frames = frame_loader(dataset, sampler, batch_size=config.batch_size, workers=config.workers)
    prepared, optimizer, loader = accelerator.prepare(step_module, optimizer, frames)
    steps_per_epoch = len(loader)
    total = steps_per_epoch * config.epochs
    schedule = _one_cycle(optimizer.optimizer, config, total)
    done = 0
    if resume:
        done = _restore(state.load(), accelerator.unwrap_model(prepared), optimizer, schedule)
    save = _Saver(accelerator, prepared, optimizer, schedule, state, hooks)
    events = _Events(run_dir, accelerator.is_main_process, truncate_after=done if resume else None)
    prepared.train()
    with _ctrl_c() as stop, events:
        for epoch in range(done // steps_per_epoch, config.epochs):
            sampler.begin(epoch)
            skip = done - epoch * steps_per_epoch
            for batch in accelerator.skip_first_batches(loader, skip) if skip else loader:
                record = _train_one(accelerator, prepared, optimizer, schedule, batch, done / total, config)
                done += 1
                events.dropped(done, batch["dropped"])
                hooks.on_dropped(batch["dropped"])
                events.write(done, epoch, float(schedule.get_last_lr()[0]), record)
                hooks.on_step(done, total, record.losses)
                if stop():
                    save(done)
                    raise Interrupted(f"stopped at step {done} of {total}; the state is saved, go on with --resume")
                if config.checkpoint_every_steps and done % config.checkpoint_every_steps == 0:
                    save(done)
            save(done)
            hooks.on_epoch(epoch + 1)
            prepared.train()


def _one_cycle(
    optimizer: torch.optim.Optimizer, config: TrainConfig, total: int
) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=total + 1,
        pct_start=max(config.warmup_fraction, 2 / (total + 1)),  # PyTorch divides by zero in a warm-up without a step
    )


def _train_one(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: Any,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batch: dict[str, Any],
    progress: float,
    config: TrainConfig,
) -> StepRecord:
    optimizer.zero_grad()
    result: StepLosses = module(batch, progress)
    losses = result.weighted
    values = {name: float(value.detach()) for name, value in losses.items()}
    bad = [name for name, value in values.items() if value - value != 0]  # NaN and infinity
    if bad:
        raise NonFiniteError(
            f"{', '.join(bad)} became {', '.join(str(values[n]) for n in bad)} on samples {batch['token']}; "
            "lower the learning rate, or use train.precision fp32"
        )
    total = torch.stack(list(losses.values())).sum()
    accelerator.backward(total)
    accelerator.clip_grad_norm_(module.parameters(), config.max_grad_norm)
    optimizer.step()
    schedule.step()
    raw = {name: float(value) for name, value in result.raw.items()}
    return StepRecord({"loss": float(total.detach()), **values}, raw, result.weights, result.gradient_norms)


def _restore(
    content: dict[str, Any], module: nn.Module, optimizer: Any, schedule: torch.optim.lr_scheduler.LRScheduler
) -> int:
    module.load_state_dict(content["module"], strict=True)
    optimizer.load_state_dict(content["optimizer"])
    schedule.load_state_dict(content["schedule"])
    torch.set_rng_state(content["torch_rng"])
    step: int = content["step"]
    return step


class _Saver:
    """Writes state and weights; only the main process does."""

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: Any,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        state: TrainingState,
        hooks: LoopHooks,
    ) -> None:
        self.accelerator, self.module, self.optimizer = accelerator, module, optimizer
        self.schedule, self.state, self.hooks = schedule, state, hooks

    def __call__(self, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        module = self.accelerator.unwrap_model(self.module)
        self.state.save(
            {
                "step": step,
                "module": module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "torch_rng": torch.get_rng_state(),
            }
        )
        self.hooks.save_weights(module)


class _Events:
    """`events.jsonl` and TensorBoard; a resumed run first drops the lines after the step it goes on from."""

    def __init__(self, run_dir: Path, is_main: bool, truncate_after: int | None) -> None:
        self.path = run_dir / "events.jsonl"
        self.is_main = is_main
        self.run_dir = run_dir
        self.start = time.monotonic()
        self.truncate_after = truncate_after
        self._drops = DropLog()

    def __enter__(self) -> _Events:
        if self.is_main:
            kept: list[str] = []
            if self.truncate_after is not None and self.path.is_file():
                lines = self.path.read_text(encoding="utf-8").splitlines()
                kept = [line for line in lines if _step_of(line) <= self.truncate_after]
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            self._drops.add(event for line in kept if (event := _dropped_of(line)))
            self.handle = self.path.open("a", encoding="utf-8")
            first = None if self.truncate_after is None else self.truncate_after + 1
            self.board = SummaryWriter(str(self.run_dir / "tb"), purge_step=first)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_main:
            self.handle.close()
            self.board.close()

    def dropped(self, step: int, found: list[DroppedSensor]) -> None:
        """One line for each sensor that a frame goes without, the first time that it is met."""
        for event in self._drops.add(found):
            if self.is_main:
                line = {"event": "sensor_dropped", "step": step, **asdict(event)}
                self.handle.write(json.dumps(line) + "\n")
                self.handle.flush()

    def write(self, step: int, epoch: int, learning_rate: float, record: StepRecord) -> None:
        """One line every few steps, and in each step where gradients were measured."""
        if not self.is_main or (step % _EVENT_EVERY_STEPS and not record.gradient_norms):
            return
        event = {"event": "step", "step": step, "epoch": epoch, "learning_rate": learning_rate}
        event |= {name: values for name, values in asdict(record).items() if values}
        event["seconds"] = round(time.monotonic() - self.start, 3)
        self.handle.write(json.dumps(event) + "\n")
        self.handle.flush()
        named = {**record.losses, "learning_rate": learning_rate}
        for group in ("raw", "weights", "gradient_norms"):
            named |= {f"{group}/{name}": value for name, value in getattr(record, group).items()}
        for name, value in named.items():
            self.board.add_scalar(name, value, step)


def _dropped_of(line: str) -> DroppedSensor | None:
    event = json.loads(line)
    if event.get("event") != "sensor_dropped":
        return None
    return DroppedSensor(**{field.name: event[field.name] for field in fields(DroppedSensor)})


def _step_of(line: str) -> int:
    """Step of an event line; a line cut short by a kill counts as the newest, so it is dropped."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 2**62


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
