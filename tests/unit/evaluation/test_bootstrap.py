from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.evaluation.bootstrap import SceneStatistics, difference_interval, scene_statistics
from bevkd_deploy.evaluation.config import detection_cvpr_2019
from bevkd_deploy.evaluation.metrics import evaluate_records

CONFIG = replace(detection_cvpr_2019(), class_range={"car": 50, "barrier": 30})
FRAMES_PER_SCENE = 3


def _world(make_record: Any, noise_m: float, scenes: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    results: dict[str, Any] = {}
    truth: dict[str, Any] = {}
    for index in range(scenes * FRAMES_PER_SCENE):
        token = f"t{index}"
        results[token], truth[token] = [], []
        for number in range(6):
            name = "car" if number % 2 else "barrier"
            xy = (8.0 * number, 0.0)
            attribute = "" if name == "barrier" or rng.random() < 0.3 else "vehicle.parked"
            velocity = [np.nan, np.nan] if rng.random() < 0.2 else [0.0, 0.0]
            truth[token].append(
                make_record(token, xy, detection_name=name, attribute_name=attribute, velocity=velocity)
            )
            for _ in range(int(rng.integers(0, 3))):
                near = (xy[0] + rng.normal() * noise_m, rng.normal() * noise_m)
                score = float(rng.integers(0, 8)) / 8 if rng.random() < 0.5 else float(rng.random())
                results[token].append(make_record(token, near, detection_name=name, detection_score=score))
    return results, truth


def _statistics(results: Any, truth: Any) -> SceneStatistics:
    scenes = [f"scene-{index // FRAMES_PER_SCENE}" for index in range(len(results))]
    return scene_statistics(evaluate_records(results, truth, CONFIG), scenes)


def test_weights_zero_and_one_give_the_figures_of_the_subset(make_record: Any) -> None:
    results, truth = _world(make_record, 1.5, scenes=6)
    statistics = _statistics(results, truth)
    rng = np.random.default_rng(1)
    for _ in range(12):
        weight = (rng.random(6) < 0.5).astype(float)
        if not weight.any():
            continue
        kept = [token for index, token in enumerate(results) if weight[index // FRAMES_PER_SCENE]]
        expected = evaluate_records({t: results[t] for t in kept}, {t: truth[t] for t in kept}, CONFIG).summary
        figures = statistics.figures(weight)
        assert figures["mAP"] == pytest.approx(expected["mean_ap"], abs=1e-12)
        assert figures["NDS"] == pytest.approx(expected["nd_score"], abs=1e-12)
        assert figures["AP car"] == pytest.approx(expected["mean_dist_aps"]["car"], abs=1e-12)
    assert statistics.figures(np.ones(6)) == pytest.approx(statistics.figures(), abs=1e-12)
    assert statistics.figures(np.full(6, 3.0)) == pytest.approx(statistics.figures(), abs=1e-12)


def test_weight_two_is_close_to_the_scene_twice(make_record: Any) -> None:
    """Not equal: with the copies one by one, precision is interpolated between them too."""
    results, truth = _world(make_record, 1.5, scenes=30)
    weight = np.random.default_rng(2).integers(0, 3, 30).astype(float)
    twice: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for index, token in enumerate(results):
        for number in range(int(weight[index // FRAMES_PER_SCENE])):
            for side, records in zip(twice, (results, truth), strict=True):
                side[f"{token}-{number}"] = copied = copy.deepcopy(records[token])
                for record in copied:
                    record["sample_token"] = f"{token}-{number}"
    expected = evaluate_records(*twice, CONFIG).summary
    figures = _statistics(results, truth).figures(weight)
    assert figures["mAP"] == pytest.approx(expected["mean_ap"], abs=4e-3)
    assert figures["NDS"] == pytest.approx(expected["nd_score"], abs=4e-3)


def test_interval_of_a_result_with_itself_is_zero(make_record: Any) -> None:
    statistics = _statistics(*_world(make_record, 1.5, scenes=4))
    found = difference_interval(statistics, statistics, replicates=20)
    assert all((row.difference, row.low, row.high) == (0, 0, 0) for row in found.figures.values())
    assert list(found.figures) == ["mAP", "NDS", "AP car", "AP barrier"]
    assert (found.units, found.replicates, found.confidence, found.seed) == (4, 20, 0.95, 0)


def test_interval_is_that_of_scipy(make_record: Any) -> None:
    """scipy draws other scenes from the same generator's numbers, so the ends agree but for the noise of the draws."""
    stats = pytest.importorskip("scipy.stats")
    results, truth = _world(make_record, 1.0, scenes=25)
    worse = _world(make_record, 2.0, scenes=25, seed=3)[0]
    first, second = _statistics(worse, truth), _statistics(results, truth)
    found = difference_interval(first, second, replicates=600, seed=5).figures["mAP"]

    def difference(scenes: Any) -> float:
        weight = np.bincount(scenes.astype(int), minlength=25).astype(float)
        return second.figures(weight)["mAP"] - first.figures(weight)["mAP"]

    oracle = stats.bootstrap(
        (np.arange(25),), difference, n_resamples=600, vectorized=False, method="percentile", rng=1
    ).confidence_interval
    width = oracle.high - oracle.low
    assert found.low < found.difference < found.high and found.difference == pytest.approx(difference(np.arange(25)))
    assert found.low == pytest.approx(oracle.low, abs=0.12 * width)
    assert found.high == pytest.approx(oracle.high, abs=0.12 * width)


def test_the_seed_decides_and_the_order_of_scenes_does_not(make_record: Any) -> None:
    results, truth = _world(make_record, 1.0, scenes=6)
    worse = _world(make_record, 2.0, scenes=6, seed=3)[0]
    first, second = _statistics(worse, truth), _statistics(results, truth)
    found = difference_interval(first, second, replicates=30, seed=1)
    assert found == difference_interval(first, second, replicates=30, seed=1)
    assert found != difference_interval(first, second, replicates=30, seed=2)
    places = np.arange(6)[::-1]
    turned = SceneStatistics(
        second.config,
        second.scenes[::-1],
        {
            name: replace(ranking, sample=places[ranking.sample], truth_sample=places[ranking.truth_sample])
            for name, ranking in second.rankings.items()
        },
    )
    again = difference_interval(first, turned, replicates=30, seed=1)
    assert {name: row.low for name, row in again.figures.items()} == pytest.approx(
        {name: row.low for name, row in found.figures.items()}
    )


def test_what_cannot_be_compared_is_refused(make_record: Any) -> None:
    results, truth = _world(make_record, 1.0, scenes=2)
    evaluation = evaluate_records(results, truth, CONFIG)
    frames = scene_statistics(evaluation)
    assert frames.scenes == evaluation.tokens
    with pytest.raises(DataError, match="same scenes"):
        difference_interval(frames, _statistics(results, truth))
    with pytest.raises(DataError, match="each of 6 samples, got 1"):
        scene_statistics(evaluation, ["scene-0"])
    for wrong in ({"replicates": 0}, {"confidence": 1.0}):
        with pytest.raises(UsageError, match="one or more replicates"):
            difference_interval(frames, frames, **wrong)  # type: ignore[arg-type]
