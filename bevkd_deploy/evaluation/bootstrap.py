"""How sure a difference between two results is: a paired bootstrap over scenes.

Frames of one scene show the same objects, so scenes are what is drawn: n of n with replacement, the same draw for both
results. Boxes are matched once; a draw only changes how often each scene counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.evaluation.box_table import Array, Indices
from bevkd_deploy.evaluation.config import DetectionConfig
from bevkd_deploy.evaluation.curves import class_curves
from bevkd_deploy.evaluation.metrics import Evaluation, summarize
from bevkd_deploy.evaluation.rankings import ClassRanking

#: With fewer units a percentile interval says little; whoever reports one says so.
FEW_UNITS = 20


@dataclass(frozen=True)
class SceneStatistics:
    """What the figures of any weighting of scenes are computed from.

    Attributes:
        config: settings of the metrics.
        scenes: the units, in order of first appearance; frames where scenes are not known.
        rankings: class -> ranked predictions and their matches, whose samples are indices into `scenes`.
    """

    config: DetectionConfig
    scenes: tuple[str, ...]
    rankings: dict[str, ClassRanking]

    def figures(self, weight: Array | None = None) -> dict[str, float]:
        """mAP, NDS and "AP <class>" with each scene counted `weight` [scenes] times, by default once."""
        curves = {name: class_curves(ranking, self.config, weight) for name, ranking in self.rankings.items()}
        summary = summarize(curves, self.config)
        per_class = {f"AP {name}": value for name, value in summary["mean_dist_aps"].items()}
        return {"mAP": summary["mean_ap"], "NDS": summary["nd_score"], **per_class}


@dataclass(frozen=True)
class Interval:
    """One figure of two results.

    Attributes:
        first: of the first result.
        second: of the second result.
        difference: second less first.
        low: lower end of the interval of the difference.
        high: its upper end.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Two results compared.

    Attributes:
        figures: mAP, NDS and "AP <class>", each with its interval.
        units: scenes (or frames) that were drawn from.
        replicates: draws.
        confidence: share of the draws inside each interval.
        seed: of the draws.
    """

    figures: dict[str, Interval]
    units: int
    replicates: int
    confidence: float
    seed: int


def scene_statistics(evaluation: Evaluation, scenes: Sequence[str] | None = None) -> SceneStatistics:
    """Statistics of an evaluation.

    Args:
        evaluation: its rankings are kept.
        scenes: scene of each sample, in the order of `evaluation.tokens`; None makes each frame a unit of its own,
            which takes the frames of a scene for independent and the interval too narrow.

    Raises:
        DataError: there is not one scene for each sample.
    """
    named = evaluation.tokens if scenes is None else tuple(scenes)
    if len(named) != len(evaluation.tokens):
        raise DataError(f"the bootstrap needs the scene of each of {len(evaluation.tokens)} samples, got {len(named)}")
    units = tuple(dict.fromkeys(named))
    place = {name: index for index, name in enumerate(units)}
    unit_of: Indices = np.array([place[name] for name in named], dtype=np.int64)
    rankings = {
        name: replace(ranking, sample=unit_of[ranking.sample], truth_sample=unit_of[ranking.truth_sample])
        for name, ranking in evaluation.rankings.items()
    }
    return SceneStatistics(evaluation.config, units, rankings)


def difference_interval(
    first: SceneStatistics,
    second: SceneStatistics,
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Percentile interval of second less first over draws of scenes, the same draws for both.

    Args:
        first: statistics of one result.
        second: of the other, on the same scenes and with the same settings.
        replicates: draws.
        confidence: share of the draws inside the interval, in (0, 1).
        seed: of the draws.

    Raises:
        UsageError: a number is out of range.
        DataError: the scenes or settings differ.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval).
    """
    if replicates < 1 or not 0 < confidence < 1:
        raise UsageError(
            f"the bootstrap needs one or more replicates and a confidence between 0 and 1, got {replicates} and "
            f"{confidence}"
        )
    if set(first.scenes) != set(second.scenes) or first.config != second.config:
        raise DataError(
            "the bootstrap compares results on the same scenes with the same detection config; these differ"
        )
    position = {name: index for index, name in enumerate(first.scenes)}
    order: NDArray[np.int64] = np.array([position[name] for name in second.scenes])
    rng = np.random.default_rng(seed)
    drawn: list[list[float]] = []
    for _ in range(replicates):
        weight = np.bincount(rng.integers(0, len(position), len(position)), minlength=len(position)).astype(float)
        one, other = first.figures(weight), second.figures(weight[order])
        drawn.append([other[name] - one[name] for name in one])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.array(drawn), [tail, 100 - tail], axis=0)
    one, other = first.figures(), second.figures()
    figures = {
        name: Interval(one[name], other[name], other[name] - one[name], float(low[index]), float(high[index]))
        for index, name in enumerate(one)
    }
    return Difference(figures, len(position), replicates, confidence, seed)
