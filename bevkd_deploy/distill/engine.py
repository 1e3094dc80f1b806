"""Weights, optimizer and schedule of one training: what makes a step, and what is saved."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bevkd_deploy.contracts.errors import NonFiniteError
from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.distill import processes
from bevkd_deploy.distill.averaging import WeightAverage
from bevkd_deploy.distill.batch_norm import share_batch_norms
from bevkd_deploy.distill.event_log import StepRecord
from bevkd_deploy.distill.freezing import Frozen
from bevkd_deploy.distill.precision import Precision
from bevkd_deploy.distill.progress import Plan, Stage, StepModule
from bevkd_deploy.distill.schedules import adamw, start_schedule
from bevkd_deploy.distill.step import StepLosses
from bevkd_deploy.distill.training_state import random_state, restore_random_state
from bevkd_deploy.models.detection_loss import object_counts

_log = logging.getLogger(__name__)

Batch = dict[str, Any]


class Engine:
    """One training in progress.

    Attributes:
        done: finished optimizer steps.
        module: the step module.
        plan: how many steps there are.
    """

    def __init__(self, module: nn.Module, config: TrainConfig, plan: Plan, device: torch.device) -> None:
        self.module = module.to(device)
        self.config, self.plan, self.device = config, plan, device
        self.done = 0
        share_batch_norms(module)
        self.precision = Precision(config.precision, device)
        self.optimizer = adamw(module, config)
        network = module.get_submodule("detector")
        self.average = WeightAverage(network, config.ema_decay) if config.ema_decay is not None else None
        self._begin_stage(plan.stages[0])

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def begin_epoch(self, epoch: int) -> None:
        """Enter training mode, and the epoch's stage."""
        stage = self.plan.stage_at(epoch)
        if stage != self.stage:
            self._begin_stage(stage)
        self.module.train()
        self.frozen.hold()

    def step(self, group: list[Batch]) -> StepRecord:
        """One optimizer step from the mean gradient of some batches.

        Returns:
            Losses, and their sum as "loss": the mean over batches and processes.

        Raises:
            NonFiniteError: a loss or the gradient is NaN or infinite.
        """
        _share_divisors(group)
        progress = self.plan.progress(self.done)
        self.optimizer.zero_grad()
        records: list[StepRecord] = []
        for number, batch in enumerate(group, start=1):
            with self._synchronized(number == len(group)):
                with self.precision.autocast():
                    result: StepLosses = self.trained(batch, progress)
                total, record = _total(result, batch["token"])
                torch.autograd.backward(self.precision.scaler.scale(total / len(group)))
            records.append(record)
        self._update([token for batch in group for token in batch["token"]])
        self.done += 1
        return _mean_over_processes(_mean_over_batches(records), self.device)

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the network has the weights to evaluate and to save."""
        return self.average.applied() if self.average is not None else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed training needs; every process has to call it."""
        return {
            "step": self.done,
            "stage": self.stage.index,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "random": processes.gather(random_state(self.device)),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        With another number of processes than it was saved with, draws within a step start anew.
        """
        self.done = content["step"]
        self.module.load_state_dict(content["module"], strict=True)
        stage = self.plan.stages[content["stage"]]
        if stage != self.stage:
            self._begin_stage(stage)
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.precision.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        saved_by = len(content["random"])
        if saved_by != processes.count():
            _log.warning("resumed by %d processes, saved by %d: not to the same bits", processes.count(), saved_by)
        else:
            restore_random_state(content["random"][processes.rank()], self.device)

    def _begin_stage(self, stage: Stage) -> None:
        self.stage = stage
        self.frozen = Frozen(self.module.get_submodule("detector"), stage.freeze)
        cast(StepModule, self.module).begin_stage(stage)
        self.schedule = start_schedule(self.optimizer, stage, self.plan.steps_of(stage))
        self.trained = self._wrapped()

    def _wrapped(self) -> nn.Module:
        """The module with its gradients averaged over processes.

        Made for each stage: it waits for the gradient of every parameter that was trainable when it was made, and then
        needs no search for unused ones, which costs memory and time.
        """
        if processes.count() == 1:
            return self.module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.module, device_ids=devices, gradient_as_bucket_view=True)

    def _synchronized(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.trained, DistributedDataParallel):
            return nullcontext()
        return self.trained.no_sync()

    def _update(self, tokens: list[str]) -> None:
        self.precision.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        # fp16 overflows now and then: its loss scale notices, skips the step and comes down.
        if self.config.precision != "fp16" and not norm.isfinite():
            raise NonFiniteError(_advice(f"the gradient became {float(norm)}", tokens))
        if self.precision.step(self.optimizer):
            self.schedule.step()
            if self.average is not None:
                self.average.update()


def _total(result: StepLosses, tokens: list[str]) -> tuple[Tensor, StepRecord]:
    """Sum of what a step module returned, and its numbers for the log; the only place that looks into it.

    Raises:
        NonFiniteError: by name.
    """
    values = {name: float(value.detach()) for name, value in result.weighted.items()}
    bad = [name for name, value in values.items() if value - value != 0]  # NaN and infinity
    if bad:
        became = ", ".join(str(values[name]) for name in bad)
        raise NonFiniteError(_advice(f"{', '.join(bad)} became {became}", tokens))
    total = torch.stack([value.float() for value in result.weighted.values()]).sum()
    losses = {"loss": float(total.detach()), **values}
    raw = {name: float(value) for name, value in result.raw.items()}
    return total, StepRecord(losses, raw, result.weights, result.gradient_norms)


def _advice(what: str, tokens: list[str]) -> str:
    return f"{what} on samples {tokens}; lower the learning rate, or use train.precision fp32"


def _share_divisors(group: list[Batch]) -> None:
    """Let the detection losses of all parts of a step, in all processes, divide by the objects of the whole step."""
    parts = len(group) * processes.count()
    if parts == 1:
        return
    counts = torch.stack([object_counts(batch["targets"]) for batch in group]).sum(dim=0)
    divisors = processes.sum_over_processes(counts).clamp(min=1) / parts
    for batch in group:
        batch["targets"]["divisors"] = divisors


def _mean_over_batches(records: list[StepRecord]) -> StepRecord:
    """Of one step; gradients are not measured in every batch, so their mean is over those that have them."""

    def mean(found: list[dict[str, float]]) -> dict[str, float]:
        found = [values for values in found if values]
        return {name: sum(values[name] for values in found) / len(found) for name in (found[0] if found else ())}

    return StepRecord(*(mean([getattr(record, group.name) for record in records]) for group in fields(StepRecord)))


def _mean_over_processes(record: StepRecord, device: torch.device) -> StepRecord:
    """Losses, weighted and raw; weights and gradient norms are the same everywhere."""
    if processes.count() == 1:
        return record
    values = {("losses", name): value for name, value in record.losses.items()}
    values |= {("raw", name): value for name, value in record.raw.items()}
    mean = processes.sum_over_processes(torch.tensor(list(values.values()), device=device)) / processes.count()
    means = dict(zip(values, mean.tolist(), strict=True))
    losses, raw = ({name: value for (kind, name), value in means.items() if kind == k} for k in ("losses", "raw"))
    return StepRecord(losses, raw, record.weights, record.gradient_norms)
