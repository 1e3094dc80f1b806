"""Student-side projectors: trained with the student, absent from it afterwards.

They are submodules of the losses that use them, hence in the optimizer, in the training state and in the data-parallel
wrapper. `torch.nn.SyncBatchNorm.convert_sync_batchnorm` finds their norms like any others. None has dropout, and none
normalises over the batch axis alone: both would make one frame's target depend on chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from bevkd_deploy.contracts.errors import UsageError

ProjectorKind = Literal["conv", "mlp", "linear"]


class Projector(nn.Module):
    """1x1 convolution and batch norm from the student's channels to the teacher's.

    It is used even when the channels agree: without it the student must also copy an arbitrary rotation of the
    teacher's channels.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher_channels)

    def forward(self, student: Tensor) -> Tensor:
        """[B, Cs, Y, X] -> [B, Ct, Y, X]."""
        # As a product of rows with channels last: on a CPU a 1x1 convolution takes twice as long or more.
        cells = nn.functional.linear(student.permute(0, 2, 3, 1), self.conv.weight.flatten(1))
        projected: Tensor = self.norm(cells.permute(0, 3, 1, 2))
        return projected


class MlpProjector(nn.Module):
    """Two 1x1 convolutions with batch norm and ReLU between them, as wide as the result.

    Vectors are taken as the cells of one map, so that the norm's statistics run over cells.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher_channels)
        self.activation = nn.ReLU(inplace=True)
        self.out = nn.Conv2d(teacher_channels, teacher_channels, 1)

    def forward(self, student: Tensor) -> Tensor:
        """[B, Cs, Y, X] -> [B, Ct, Y, X], or [M, Cs] -> [M, Ct]."""
        x = student.T[None, :, :, None] if student.dim() == 2 else student  # [1, Cs, M, 1]
        projected: Tensor = self.out(self.activation(self.norm(self.hidden(x))))
        return projected[0, :, :, 0].T if student.dim() == 2 else projected


class LinearEmbedding(nn.Linear):
    """One linear map of each vector or cell, without a norm: the same for one vector as for many."""

    def forward(self, student: Tensor) -> Tensor:
        """[M, Cs] -> [M, Ct], or cell by cell [B, Cs, Y, X] -> [B, Ct, Y, X]."""
        if student.dim() == 2:
            return super().forward(student)
        return nn.functional.conv2d(student, self.weight[:, :, None, None], self.bias)


def build_projector(kind: ProjectorKind, student_channels: int, teacher_channels: int) -> nn.Module:
    """The projector that a recipe names.

    Raises:
        UsageError: an unknown kind.
    """
    kinds: dict[str, Callable[[int, int], nn.Module]] = {
        "conv": Projector,
        "mlp": MlpProjector,
        "linear": LinearEmbedding,
    }
    if kind not in kinds:
        raise UsageError(f"unknown projector '{kind}', expected one of {', '.join(kinds)}")
    return kinds[kind](student_channels, teacher_channels)
