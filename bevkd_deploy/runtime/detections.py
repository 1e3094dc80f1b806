"""What a detector returns for one frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import ArtifactError


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one frame, by descending score.

    Attributes:
        boxes: float32 [n, 9] = x, y, z, l, w, h, yaw, vx, vy; lidar frame, geometric centre, metres, radians, m/s.
        scores: float32 [n], 0..1.
        labels: int32 [n], index into `classes`.
        classes: class names.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = (self.boxes.shape, self.scores.shape, self.labels.shape)
        if shapes != ((count, 9), (count,), (count,)):
            raise ArtifactError(
                f"detections need boxes [n, 9], scores [n], labels [n], got {[list(s) for s in shapes]}"
            )
        if count and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            low, high = int(self.labels.min()), int(self.labels.max())
            raise ArtifactError(f"labels must index {len(self.classes)} classes, got {low}..{high}")

    def __len__(self) -> int:
        return len(self.scores)

    def names(self) -> tuple[str, ...]:
        """Class name of each box."""
        return tuple(self.classes[label] for label in self.labels)

    def above(self, score: float) -> Detections:
        """The boxes with at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.classes)
