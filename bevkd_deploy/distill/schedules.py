"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.distill.progress import Stage

_BETAS = (0.9, 0.999)


def adamw(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of a module; frozen ones have no gradient and are passed over.

    Without `decay_norms`, parameters of one dimension (scales and offsets of norms, biases) get no weight decay.
    """
    groups: list[dict[str, Any]] = [{"params": list(module.parameters())}]
    if not config.decay_norms:
        groups = [
            {"params": [value for value in module.parameters() if value.ndim > 1]},
            {"params": [value for value in module.parameters() if value.ndim <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, config.learning_rate, betas=_BETAS, weight_decay=config.weight_decay)


def start_schedule(optimizer: torch.optim.Optimizer, stage: Stage, steps: int) -> LRScheduler:
    """The learning rate over the steps of a stage, begun anew whatever the optimizer did before.

    one_cycle: cosine up from 1/25 of the highest rate and down to nearly nothing, with the first beta falling from
    0.95 to 0.85 and rising again (PyTorch's OneCycleLR). cosine: linear up over the warm-up, then a half cosine down;
    the rate would be zero at the step after the last one.
    """
    for group in optimizer.param_groups:
        # PyTorch's schedules leave an `initial_lr` that they find as it is.
        group["lr"], group["initial_lr"], group["betas"] = stage.learning_rate, stage.learning_rate, _BETAS
    if stage.schedule == "one_cycle":
        return OneCycleLR(
            optimizer,
            stage.learning_rate,
            total_steps=steps + 1,
            # PyTorch divides by zero in a warm-up without a step
            pct_start=max(stage.warmup_fraction, 2 / (steps + 1)),
        )
    warmup = max(1, round(stage.warmup_fraction * steps))
    return LambdaLR(optimizer, lambda step: _cosine(step, warmup, steps))


def _cosine(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup + 1) / (steps - warmup + 1))))
