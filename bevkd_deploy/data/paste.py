"""Ground-truth paste: objects of other training frames, put where they were seen, points and boxes (SECOND, 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.recipe_training import PasteConfig
from bevkd_deploy.data.object_database import ObjectDatabase
from bevkd_deploy.geometry.boxes import footprints_overlap, rows_in_boxes


@dataclass(frozen=True, eq=False)
class Paster:
    """Pastes into frames of one training.

    Attributes:
        database: what can be pasted.
        config: how many of what.
        until_position: draws from this position on are left alone, so that training ends on real frames.
    """

    database: ObjectDatabase
    config: PasteConfig
    until_position: int

    def __call__(
        self,
        points: NDArray[np.float32],
        boxes: NDArray[np.float64],
        labels: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
        """Fill up a frame, before any BEV augmentation.

        Args:
            points: [P, 5], LiDAR frame; with its sweeps.
            boxes: [N, 9], all annotated objects, those without points too: nothing may stand in them.
            labels: [N].
            rng: of this frame.

        Returns:
            Points without those inside pasted boxes, then the pasted ones; and boxes and labels of the pasted objects
            alone, velocity NaN: points of one sweep do not tell it.
        """
        rows = self._draw(boxes, labels, rng)
        if not rows:
            return points, np.zeros((0, 9)), np.zeros(0, dtype=np.int64)
        pasted = self.database.boxes[rows].copy()
        hidden = np.concatenate(rows_in_boxes(points, pasted))
        kept = np.delete(points, hidden, axis=0)
        pasted[:, 7:9] = np.nan
        filled = np.concatenate([kept, *(self.database.points_of(row) for row in rows)])
        return filled, pasted, self.database.labels[rows]

    def _draw(self, boxes: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
        """Rows of the database that fit into the frame."""
        occupied = boxes
        accepted: list[int] = []
        for name in CLASS_NAMES:
            label = CLASS_NAMES.index(name)
            wanted = self.config.up_to.get(name, 0) - int((labels == label).sum())
            available = np.flatnonzero(self.database.labels == label)
            if wanted <= 0 or not len(available):
                continue
            # As in mmdet3d, one that collides is left out and not drawn again: crowded frames stay as they are.
            for row in rng.choice(available, min(wanted, len(available)), replace=False):
                box = self.database.boxes[row][None]
                if not footprints_overlap(box, occupied).any():
                    occupied = np.concatenate([occupied, box])
                    accepted.append(int(row))
        return accepted
