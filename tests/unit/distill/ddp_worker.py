"""Two gloo processes with taps, run by test_taps_safety.py: python ddp_worker.py FOLDER."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from bevkd_deploy.distill.projectors import Projector
from bevkd_deploy.distill.taps import Taps

WORLD = 2


class Net(nn.Module):
    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        return out


class Step(nn.Module):
    """A student and its projector, with taps opened inside the forward pass, as a distillation step does it."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.detector = Net(checkpointed)
        self.projector = Projector(4, 6).eval()  # batch statistics would differ between halves and whole
        self.names: list[str] = []
        self.firings: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        with Taps(self.detector, ["stem", "block.0", "block.2"], detach=False, role="student") as taps:
            out = self.detector(x)
        return out.pow(2).mean() + self.tapped(taps)

    def tapped(self, taps: Taps) -> Tensor:
        captured = taps.firings()
        self.names = list(captured)
        self.firings += [len(fired) for fired in captured.values()]
        return sum((self.projector(fired[0]).pow(2).mean() for fired in captured.values()), torch.zeros(()))


class Outside(nn.Module):
    """The wrapped network is the student alone; taps are opened on the wrapper, paths know nothing of it."""

    def __init__(self, wrapped: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.wrapped, self.projector = wrapped, projector
        self.names: list[str] = []
        self.firings: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        with Taps(self.wrapped, ["stem", "block.0", "block.2"], detach=False) as taps:
            out = self.wrapped(x)
        return out.pow(2).mean() + Step.tapped(self, taps)  # type: ignore[arg-type]


def gradients_of(module: nn.Module, network: nn.Module, x: Tensor) -> Tensor:
    for _ in range(2):  # the second step shows what the first one left behind
        module.zero_grad()
        module(x).backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def result(rank: int, name: str) -> dict[str, Any]:
    checkpointed = name == "checkpointed"
    x = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    half = x[rank * 2 : rank * 2 + 2]
    alone = Step(checkpointed)
    expected = gradients_of(alone, alone.detector, x)
    step = Step(checkpointed)
    if name == "outside":
        module: nn.Module = Outside(DistributedDataParallel(step.detector), step.projector)
        keeper: Any = module
    else:
        module, keeper = DistributedDataParallel(step), step
    found = gradients_of(module, step.detector, half)
    return {
        "names": keeper.names,
        "firings": keeper.firings,
        "difference": float((found - expected).abs().max()),
        "largest": float(expected.abs().max()),
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    results = {name: result(rank, name) for name in ("outside", "inside", "checkpointed")}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    torch.distributed.barrier()  # a process that leaves early takes the connections of the other one down
    torch.distributed.destroy_process_group()
    # On a machine under load PyTorch's native threads now and then abort or hang while the interpreter shuts down, long
    # after everything that is tested here. The results are written: leave without that.
    os._exit(0)


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, args=(sys.argv[1],), nprocs=WORLD)
