"""Which samples of the training set a sample is contrasted with."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import DistillError


class ClassNegatives:
    """Negatives of other classes than the anchor's, its "exact" mode: the positive is the sample itself.

    Without repetition where the other classes have enough samples, as RepDistiller's data set draws them. Random
    numbers come from PyTorch's CPU generator, which checkpoints keep, on every device.

    Source: Tian et al. 2020 (arXiv 1910.10699), its reference code.
    """

    def __init__(self, labels: Tensor, negatives: int) -> None:
        """Sort the samples by class.

        Args:
            labels: [n_data] integers, the class of each sample of the training set.
            negatives: to be drawn per sample.
        """
        self.labels = labels.detach().cpu().long()
        self.negatives = negatives
        self.by_class = torch.argsort(self.labels, stable=True)  # sample numbers, class after class
        self.counts = torch.bincount(self.labels)
        self.starts = self.counts.cumsum(0) - self.counts
        if int((self.counts > 0).sum()) < 2:
            raise DistillError("all samples have one class: there are no negatives of other classes")

    def draw(self, index: Tensor) -> Tensor:
        """Sample numbers [B] -> [B, negatives + 1] int64 on the CPU, the sample itself in column 0."""
        index = index.detach().cpu()
        return torch.cat([index[:, None], torch.stack([self._draw(int(label)) for label in self.labels[index]])], dim=1)

    def _draw(self, label: int) -> Tensor:
        start, count = int(self.starts[label]), int(self.counts[label])
        others = len(self.labels) - count
        if self.negatives > others:
            place = torch.randint(others, (self.negatives,))
        else:
            place = torch.randperm(others)[: self.negatives]
        # Places are counted without the anchor's class, which is one run of `by_class`: step over it.
        return self.by_class[torch.where(place < start, place, place + count)]


def any_negatives(index: Tensor, n_data: int, negatives: int) -> Tensor:
    """As `ClassNegatives.draw` where classes are unknown: negatives from the whole training set, with repetition."""
    index = index.detach().cpu()
    return torch.cat([index[:, None], torch.randint(n_data, (len(index), negatives))], dim=1)
