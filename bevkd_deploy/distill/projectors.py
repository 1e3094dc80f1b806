"""Student-side projectors: trained with the student, absent from it afterwards."""

from __future__ import annotations

from torch import Tensor, nn


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
