"""Batch norm over the batches of all processes, so that their number does not change what is trained."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bevkd_deploy.distill.processes import count, mean_over_processes


class ProcessBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of all processes together; PyTorch's SyncBatchNorm is for CUDA alone.

    Every process has maps of the same shape, so the mean of the means is the mean. In evaluation mode, and with one
    process, it is plain batch norm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least a batch and channels, got shape {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape; statistics are taken in fp32."""
        if not self.training or count() == 1:
            return super().forward(input)
        standardized, mean, variance = standardize_over_processes(input, self.eps)
        self._remember(mean.detach(), variance.detach(), input.numel() // input.shape[1] * count())
        shape = _per_channel(input)
        return (standardized * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, cells: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * cells / (cells - 1), self.momentum)  # unbiased, as PyTorch keeps it


def standardize_over_processes(input: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Zero mean and unit deviation per channel over the batches of all processes.

    Args:
        input: [B, C, ...], of the same shape in every process.
        eps: added to the variance.

    Returns:
        The standardised input in fp32, and the mean and the (biased) variance, [C].
    """
    dims = [0, *range(2, input.ndim)]
    x = input.float()
    mean = mean_over_processes(x.mean(dims))
    centred = x - mean.view(_per_channel(input))
    variance = mean_over_processes(centred.pow(2).mean(dims))
    return centred * torch.rsqrt(variance + eps).view(_per_channel(input)), mean, variance


def share_batch_norms(module: nn.Module) -> None:
    """Let the batch norms inside a module take their statistics over all processes; nothing changes with one process.

    Parameters, buffers and names in the state dict stay the same.
    """
    if count() == 1:
        return
    if next(module.parameters()).is_cuda:
        # It puts new children into the same parents; the root, a step module, is no batch norm itself.
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, ProcessBatchNorm):
                setattr(parent, name, _shared(child))


def _per_channel(input: Tensor) -> list[int]:
    return [1, -1] + [1] * (input.ndim - 2)


def _shared(norm: _BatchNorm) -> ProcessBatchNorm:
    momentum = cast(float, norm.momentum)
    shared = ProcessBatchNorm(norm.num_features, norm.eps, momentum, norm.affine, norm.track_running_stats)
    shared.weight, shared.bias = norm.weight, norm.bias
    shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
    shared.num_batches_tracked = norm.num_batches_tracked
    return shared.train(norm.training)
