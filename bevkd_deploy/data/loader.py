"""Batches of frames, prepared in worker processes."""

from __future__ import annotations

from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from bevkd_deploy.data.dataset import Frame, FrameDataset, collate
from bevkd_deploy.data.sampling import EpochSampler


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
    if workers:
        # OpenCV would start as many threads in each worker as the machine has cores; PyTorch limits its own. Said here
        # and not in the workers: a pool that this process has started is not forked, and a worker that ends it hangs.
        cv2.setNumThreads(1)
    return DataLoader[Frame](
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=len(sampler) >= batch_size,
        persistent_workers=workers > 0,
        # Its own: a loader draws from it at each start, and a resumed epoch has one start more.
        generator=torch.Generator(),
    )
