"""`bevkd evaluate`: score a submission file, alone or against a second one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.files import read_json, write_json
from bevkd_deploy.evaluation.bootstrap import FEW_UNITS, Difference, difference_interval, scene_statistics
from bevkd_deploy.evaluation.config import DetectionConfig, detection_cvpr_2019
from bevkd_deploy.evaluation.metrics import Evaluation, evaluate_tables, require_same_samples
from bevkd_deploy.evaluation.records import Kind
from bevkd_deploy.evaluation.submission import nan_to_null
from bevkd_deploy.evaluation.submission_files import Submission, read_submission

CURVES_SCHEMA = "bevkd.curves/1"
_SHOWN_SCENES = 8


@dataclass(frozen=True)
class EvaluationRequest:
    """What to score.

    Attributes:
        results: submission file.
        ground_truth: ground-truth file.
        config: JSON file with the devkit's DetectionConfig keys; None for the official settings.
        scenes: names of the scenes to score, as in `meta.scenes` of the ground truth; empty for all.
        against: a second submission file, from which the difference is taken.
        replicates: draws of the bootstrap of that difference.
        seed: of the draws.
    """

    results: Path
    ground_truth: Path
    config: Path | None = None
    scenes: Sequence[str] = ()
    against: Path | None = None
    replicates: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Scored:
    """What came out.

    Attributes:
        evaluation: of the results.
        difference: results less `against`; None without a second file.
        by_scene: whether the bootstrap drew scenes; False if it drew frames, None without a second file.
        notes: what a reader of the figures must know.
    """

    evaluation: Evaluation
    difference: Difference | None
    by_scene: bool | None
    notes: tuple[str, ...]

    @property
    def summary(self) -> dict[str, Any]:
        """The devkit's metrics_summary keys and filters; with a second file also difference. JSON values."""
        summary: dict[str, Any] = nan_to_null(self.evaluation.summary)
        if self.difference is not None:
            summary["difference"] = {
                **dataclasses.asdict(self.difference),
                "unit": "scene" if self.by_scene else "frame",
            }
        return summary

    def curves(self, title: str) -> dict[str, Any]:
        """What a report draws: title, frames, the summary, and by class the curves behind it. JSON values."""
        return {
            "schema": CURVES_SCHEMA,
            "title": title,
            "frames": len(self.evaluation.tokens),
            "summary": self.summary,
            "notes": list(self.notes),
            "classes": {name: curves.serialize() for name, curves in self.evaluation.curves.items()},
        }


def evaluate_files(request: EvaluationRequest) -> Scored:
    """Score results against ground truth, and against a second result if one is named.

    Raises:
        UsageError: the config is none, or scenes are asked for that the ground truth does not name.
        ArtifactError: a file is missing or no JSON.
        DataError: a record is malformed, or samples differ.
    """
    config = detection_cvpr_2019() if request.config is None else read_config(request.config)
    truth = read_submission(request.ground_truth, Kind.GROUND_TRUTH)
    scene_of = _scene_names(truth)
    kept = _kept_samples(truth, scene_of, request)
    evaluation = _evaluate(request.results, truth, kept, config)
    notes = _filter_notes(evaluation)
    if request.against is None:
        return Scored(evaluation, None, None, tuple(notes))
    other = _evaluate(request.against, truth, kept, config)
    if scene_of is None:
        notes.append(
            "the ground truth has no meta.scenes: the bootstrap draws single frames, which takes the frames of a scene "
            "for independent, so the intervals are too narrow"
        )
    statistics = [
        scene_statistics(scored, None if scene_of is None else [scene_of[token] for token in scored.tokens])
        for scored in (other, evaluation)
    ]
    difference = difference_interval(*statistics, replicates=request.replicates, seed=request.seed)
    if difference.units < FEW_UNITS:
        unit = "frames" if scene_of is None else "scenes"
        notes.append(f"{difference.units} {unit} are few: the intervals are rough, and rather too narrow")
    return Scored(evaluation, difference, scene_of is not None, tuple(notes))


def read_config(path: Path) -> DetectionConfig:
    """Detection settings from a JSON file with the devkit's keys.

    Raises:
        UsageError: it holds other keys or values.
    """
    content = read_json(path, "detection config")
    if not isinstance(content, Mapping):
        raise UsageError(f"detection config {path} must hold an object, got {type(content).__name__}")
    return DetectionConfig.from_dict(content)


def write_curves(path: Path, scored: Scored, title: str) -> Path:
    """Write the curves file that the report reads."""
    return write_json(path, scored.curves(title))


def _evaluate(results: Path, truth: Submission, kept: Sequence[str], config: DetectionConfig) -> Evaluation:
    predicted = read_submission(results, Kind.RESULTS).boxes
    wanted, known = set(kept), set(truth.boxes.tokens)
    # The order of the results stays: it decides between equal scores. Samples that nobody knows are refused.
    tokens = [token for token in predicted.tokens if token in wanted or token not in known]
    require_same_samples(tokens, kept)
    return evaluate_tables(
        predicted.of_samples(tokens), truth.boxes.of_samples(tokens), config, bike_racks=truth.bike_racks
    )


def _scene_names(truth: Submission) -> Mapping[str, str] | None:
    """Scene of each sample, if the file names that of all."""
    scenes = truth.meta.get("scenes")
    if not isinstance(scenes, dict) or any(not isinstance(scenes.get(token), str) for token in truth.boxes.tokens):
        return None
    return scenes


def _kept_samples(truth: Submission, scene_of: Mapping[str, str] | None, request: EvaluationRequest) -> Sequence[str]:
    if not request.scenes:
        return truth.boxes.tokens
    if scene_of is None:
        raise UsageError(
            f"--scenes needs the scene of every sample under meta.scenes in {request.ground_truth}; "
            "bevkd data truth writes such a file"
        )
    known = list(dict.fromkeys(scene_of[token] for token in truth.boxes.tokens))
    unknown = [name for name in request.scenes if name not in known]
    if unknown:
        more = ", ..." if len(known) > _SHOWN_SCENES else ""
        raise UsageError(
            f"{request.ground_truth} has no scene {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(known[:_SHOWN_SCENES])}{more}"
        )
    return [token for token in truth.boxes.tokens if scene_of[token] in request.scenes]


def _filter_notes(evaluation: Evaluation) -> list[str]:
    missing = {
        "class_range": "boxes are not filtered by class range: not all records carry ego_translation",
        "num_pts": "ground truth without points is not left out: its records carry no num_pts",
        "bike_racks": "cycles in bicycle racks are not left out: the ground truth has no bike_racks",
    }
    return [note for name, note in missing.items() if not evaluation.filters[name]]
