"""What student and teacher must have in common before a loss compares them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bevkd_deploy.contracts.errors import DistillError


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raises DistillError unless both have one shape: broadcasting would compare what does not belong together."""
    if student.shape != teacher.shape:
        raise DistillError(
            f"student {list(student.shape)} and teacher {list(teacher.shape)} must have one shape; "
            "put a projector on the student"
        )


def check_batch(student: Tensor, teacher: Tensor, smallest: int = 1) -> None:
    """Raises DistillError unless both hold the same number of samples, at least `smallest`."""
    if len(student) != len(teacher):
        raise DistillError(f"student and teacher must hold the same samples, got {len(student)} and {len(teacher)}")
    if len(student) < smallest:
        raise DistillError(
            f"this loss compares the samples of a batch with one another and teaches nothing at batch size "
            f"{len(student)}; use at least {smallest} samples in each process, or another loss"
        )


def check_lists(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], smallest: int = 1) -> None:
    """Raises DistillError unless both are lists of the same length, at least `smallest`."""
    if isinstance(student, Tensor) or isinstance(teacher, Tensor):
        raise DistillError("this loss takes a list of maps of each network, shallow to deep, got a tensor")
    if len(student) != len(teacher) or len(student) < smallest:
        raise DistillError(
            f"student and teacher must give the same number of maps, at least {smallest}, "
            f"got {len(student)} and {len(teacher)}"
        )


def check_maps(*maps: Tensor) -> None:
    """Raises DistillError unless all are [B, C, H, W]."""
    shapes = [list(item.shape) for item in maps]
    if any(len(shape) != 4 for shape in shapes):
        raise DistillError(f"this loss takes maps of shape [B, C, H, W], got {shapes}")


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two maps [B, C, H, W] down to the height and width of the smaller."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    return _pool(first, size), _pool(second, size)


def _pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else adaptive_avg_pool2d(features, size)
