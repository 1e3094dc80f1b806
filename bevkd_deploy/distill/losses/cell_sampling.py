"""Drawing the cells that a dense contrast compares: spread over objects, and where the background is hard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bevkd_deploy.distill.losses.scene import BevScene

#: So that a bus does not outvote a pedestrian.
CELLS_PER_INSTANCE = 8


@dataclass(frozen=True)
class SampledCells:
    """M cells of a batch.

    Attributes:
        frame: int64 [M], row of the batch.
        cell: int64 [M], flat index y * X + x.
        instance: int64 [M], object of the frame, -1 for background.
        class_id: int64 [M], -1 for background.
    """

    frame: Tensor
    cell: Tensor
    instance: Tensor
    class_id: Tensor


def sample_cells(scene: BevScene, cells_per_sample: int) -> SampledCells:
    """At most three quarters of object cells, at most eight an object, and the hardest clear cells for a quarter.

    Objects take turns, so that few cells still show every object. Random numbers come from the CPU's generator on
    every device, because checkpoints keep that one.
    """
    instance, class_id = scene.instance.flatten(1), scene.class_id.flatten(1)
    of_background = cells_per_sample // 4
    hardness = scene.hardness.flatten(1).masked_fill(~scene.clear.flatten(1), float("-inf"))
    frames, cells = [], []
    for index in range(len(instance)):
        objects = torch.nonzero(instance[index] >= 0).squeeze(1)
        objects = objects[spread(instance[index, objects], cells_per_sample - of_background)]
        count = min(of_background, int(scene.clear[index].sum()))
        chosen = torch.cat([objects, torch.topk(hardness[index], count).indices])
        cells.append(chosen)
        frames.append(torch.full_like(chosen, index))
    frame, cell = torch.cat(frames), torch.cat(cells)
    return SampledCells(frame, cell, instance[frame, cell], class_id[frame, cell])


def spread(instance: Tensor, count: int) -> Tensor:
    """Positions of at most `count` entries, drawn so that instances take turns, at most eight times each.

    Args:
        instance: int64 [N], the instance of each entry.
        count: how many to draw.

    Returns:
        int64 [<= count], all different.
    """
    shuffled = torch.randperm(len(instance)).to(instance.device)
    by_instance, order = torch.sort(instance[shuffled], stable=True)
    turn = torch.arange(len(instance), device=instance.device) - torch.searchsorted(by_instance, by_instance)
    # The fraction shuffles the instances within a turn: the last turn may not reach all of them.
    priority = turn + torch.rand(len(instance)).to(instance.device)
    drawn = torch.argsort(priority)[: min(count, int((turn < CELLS_PER_INSTANCE).sum()))]
    return shuffled[order[drawn]]
