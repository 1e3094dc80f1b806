"""Cases that two processes run together; `python two_process_runs.py FOLDER` writes what each of them got.

A file of its own, started as a program, because spawned processes must be able to import it by themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist

from bevkd_deploy.distill import processes
from bevkd_deploy.distill.gathering import gather_rows, gather_rows_with_gradient, own_rows
from bevkd_deploy.distill.losses.classic import ContrastiveRepresentationLoss
from bevkd_deploy.distill.losses.info_nce import InfoNCELoss
from bevkd_deploy.distill.losses.nt_xent import NTXentLoss

#: Rows of each rank, for batches that are shared out unevenly, evenly, and with nothing for one.
UNEVEN, EVEN, NONE, ONE = (2, 3), (2, 2), (3, 0), (1, 1)


def share(rows: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
    """The rows of one rank; all of them for rank -1, which is one process with the whole batch."""
    return rows if rank < 0 else rows.split(list(counts))[rank]


class Embedded(nn.Module):
    """A loss behind the layer that it trains."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embed = nn.Linear(4, 3)
        self.loss = loss

    def forward(self, student: Tensor, *others: Tensor) -> Tensor:
        return self.loss(self.embed(student), *others)


def contrast_case(loss: nn.Module, counts: tuple[int, ...], rank: int) -> dict[str, Any]:
    """Value and parameter gradients of one step, averaged over processes by DDP."""
    step: nn.Module = Embedded(loss).double()
    torch.manual_seed(8)
    rows = sum(counts)
    student = torch.randn(rows, 4, dtype=torch.float64)
    teacher = torch.randn(rows, 3, dtype=torch.float64)
    trained = step if rank < 0 else nn.parallel.DistributedDataParallel(step)
    value = trained(share(student, counts, rank), share(teacher, counts, rank))
    value.backward()
    return {"value": value.detach(), "gradients": [parameter.grad for parameter in step.parameters()]}


def bank_case(rank: int) -> dict[str, Any]:
    """Two steps of CRD with four samples."""
    torch.manual_seed(9)
    loss: nn.Module = Embedded(ContrastiveRepresentationLoss(3, 5, 4, n_data=12, negatives=3)).double()
    trained = loss if rank < 0 else nn.parallel.DistributedDataParallel(loss)
    got: dict[str, Any] = {"values": [], "gradients": []}
    for _ in range(2):
        student, teacher = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
        index = torch.randperm(12)[:4]
        contrast_index = torch.cat([index[:, None], torch.randint(12, (4, 3))], dim=1)
        loss.zero_grad()
        value = trained(*(share(rows, EVEN, rank) for rows in (student, teacher, index, contrast_index)))
        value.backward()
        got["values"].append(value.detach())
        got["gradients"].append([parameter.grad.clone() for parameter in loss.parameters()])
    return {**got, "buffers": dict(loss.named_buffers())}


def gathering_cases(rank: int) -> dict[str, Any]:
    numbers = torch.arange(10).reshape(5, 2)
    got: dict[str, Any] = {"world": processes.count()}
    for dtype in (torch.float32, torch.float16, torch.int64, torch.bool):
        got[str(dtype)] = gather_rows(share(numbers.to(dtype), UNEVEN, rank))
    own = own_rows(share(numbers, UNEVEN, rank))
    got["own"] = own.start, own.stop
    got["nothing from rank 1"] = gather_rows(share(numbers[:3], NONE, rank))
    got["nothing at all"] = gather_rows(numbers[:0])
    leaf = share(numbers.double(), UNEVEN, rank).clone().requires_grad_()
    got["no gradient"] = gather_rows(leaf).requires_grad
    everything = gather_rows_with_gradient(leaf)
    (everything * torch.arange(1.0, 6.0)[:, None]).sum().backward()
    got["with gradient"], got["gradient"] = everything.detach(), leaf.grad
    return got


def all_cases(rank: int) -> dict[str, Any]:
    return {
        "gathering": gathering_cases(rank),
        "info_nce": contrast_case(InfoNCELoss(0.2, learned=True), UNEVEN, rank),
        "info_nce fixed": contrast_case(InfoNCELoss(0.2), EVEN, rank),
        "info_nce one row each": contrast_case(InfoNCELoss(0.2), ONE, rank),
        "nt_xent": contrast_case(NTXentLoss(0.2), UNEVEN, rank),
        "nt_xent one row each": contrast_case(NTXentLoss(0.2), ONE, rank),
        "crd": bank_case(rank),
    }


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(all_cases(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    torch.save(all_cases(-1), target / "whole.pt")
    multiprocessing.spawn(process, args=(str(target),), nprocs=2)
