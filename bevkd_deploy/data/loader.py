"""Batches of frames, prepared in worker processes."""

from __future__ import annotations

from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from bevkd_deploy.data.dataset import EpochSampler, Frame, FrameDataset, collate


def frame_loader(
    dataset: FrameDataset, sampler: EpochSampler, *, batch_size: int, workers: int
) -> DataLoader[dict[str, Any]]:
    """Loader of whole batches; a data set smaller than one batch makes one short batch.

    Args:
        dataset: frames.
        sampler: their order.
        batch_size: frames a batch.
        workers: processes that prepare frames, each on one thread; 0: this process.
    """
    return DataLoader[Frame](
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=len(sampler) >= batch_size,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
        # Its own: a loader draws from it at each start, and a resumed epoch has one start more.
        generator=torch.Generator(),
    )


def _one_thread(_: int) -> None:
    # OpenCV would start as many threads in each worker as the machine has cores; PyTorch limits its own.
    cv2.setNumThreads(1)
