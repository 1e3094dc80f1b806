"""Which frame comes when: a permutation per pass, or a class-balanced draw (CBGS, arXiv 1908.09492)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.data.samples import Sample


class ClassBalance:
    """Draws frames so that each class is drawn for equally often.

    Rule, as mmdet3d's CBGSDataset: with n_c frames that show class c, N the sum of all n_c and C classes, each class
    gets N / C (rounded down) of its frames, drawn with replacement. Classes that no frame shows are left out (there
    they divide by zero), and a pass is drawn afresh (there it is drawn once for all).
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        shown: dict[int, list[int]] = {}
        for index, sample in enumerate(samples):
            # What no sensor has touched is not taught, so it does not count.
            for label in np.unique(sample.labels[sample.num_points > 0]):
                shown.setdefault(int(label), []).append(index)
        if not shown:
            raise DataError(f"class_balanced needs frames with objects; none of {len(samples)} has any. Switch it off")
        self.frames_of = {label: np.array(shown[label]) for label in sorted(shown)}
        self.draws_per_class = sum(map(len, shown.values())) // len(shown)

    def __len__(self) -> int:
        """Frames of one pass."""
        return self.draws_per_class * len(self.frames_of)

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Frame numbers of one pass, shuffled."""
        drawn = [rng.choice(frames, self.draws_per_class) for frames in self.frames_of.values()]
        return rng.permutation(np.concatenate(drawn))


class EpochSampler(Sampler[int]):
    """Positions of one epoch, counted on through the epochs for the augmentation's sake.

    A position is `count * length + frame`; the count never comes back for the same frame, and never falls from one
    pass to the next. A pass is a seeded permutation of the frames, or a draw of `balance`.
    """

    def __init__(self, length: int, seed: int, repeat: int = 1, balance: ClassBalance | None = None) -> None:
        self.length = length
        self.seed = seed
        self.repeat = repeat
        self.balance = balance
        self.epoch = 0

    @classmethod
    def of_training(cls, samples: Sequence[Sample], train: TrainConfig, seed: int) -> EpochSampler:
        """The order in which a recipe trains."""
        balance = ClassBalance(samples) if train.class_balanced else None
        return cls(len(samples), seed, train.repeat, balance)

    # Not `set_epoch`: accelerate's loaders call a method of that name with a count of their own, which starts at 0
    # again when a run is resumed.
    def begin(self, epoch: int) -> None:
        """Choose the epoch whose positions come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (len(self.balance) if self.balance else self.length) * self.repeat

    def __iter__(self) -> Iterator[int]:
        for turn in range(self.epoch * self.repeat, (self.epoch + 1) * self.repeat):
            rng = np.random.default_rng([self.seed, turn])
            if self.balance is None:
                yield from (int(turn * self.length + index) for index in rng.permutation(self.length))
                continue
            first = turn * len(self.balance)
            for number, index in enumerate(self.balance.draw(rng)):
                yield int((first + number) * self.length + index)

    def first_position_after(self, epochs: float) -> int:
        """The position that a fraction of epochs ends before: all later draws have this one or a higher one."""
        turns = epochs * self.repeat
        counts = round(turns * len(self.balance)) if self.balance else round(turns)
        return counts * self.length
