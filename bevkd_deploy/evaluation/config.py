"""Settings of the nuScenes detection metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import UsageError


@dataclass(frozen=True)
class DetectionConfig:
    """What the metrics count, match and average.

    Attributes:
        class_range: class name -> evaluation radius around the ego vehicle in metres. Its keys are the evaluated
            classes, in the order of the report: one or more of `CLASS_NAMES` (the official metric takes all ten).
        dist_ths: centre distances in metres below which a prediction matches, one average precision each.
        dist_th_tp: the one of `dist_ths` at which true-positive errors are measured.
        min_recall: recall at or below which neither precision nor errors count.
        min_precision: precision taken off before averaging.
        max_boxes_per_sample: predictions allowed in one sample, all classes together.
        mean_ap_weight: weight of mAP in NDS, against one for each true-positive score.
        dist_fcn: only "center_distance", the distance of box centres in the ground plane.

    Raises:
        UsageError: a value is out of its range; the message names it.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/data_classes.py (DetectionConfig).
    """

    class_range: Mapping[str, float]
    dist_ths: tuple[float, ...]
    dist_th_tp: float
    min_recall: float
    min_precision: float
    max_boxes_per_sample: int
    mean_ap_weight: float
    dist_fcn: str = "center_distance"

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_range", dict(self.class_range))
        object.__setattr__(self, "dist_ths", tuple(self.dist_ths))
        problems = self._problems()
        if problems:
            raise UsageError("detection config: " + "; ".join(problems))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The evaluated classes, in the order of the report."""
        return tuple(self.class_range)

    def serialize(self) -> dict[str, Any]:
        """JSON form with the devkit's keys; `from_dict` reads it back."""
        return {
            "class_range": dict(self.class_range),
            "dist_fcn": self.dist_fcn,
            "dist_ths": list(self.dist_ths),
            "dist_th_tp": self.dist_th_tp,
            "min_recall": self.min_recall,
            "min_precision": self.min_precision,
            "max_boxes_per_sample": self.max_boxes_per_sample,
            "mean_ap_weight": self.mean_ap_weight,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DetectionConfig:
        """Read the JSON form; missing and unknown keys raise `UsageError`, as do values out of range."""
        known = {field.name for field in fields(cls)}
        missing, unknown = sorted(known - set(content)), sorted(set(content) - known)
        if missing or unknown:
            raise UsageError(
                f"detection config: missing keys {missing}, unknown keys {unknown}; it needs exactly {sorted(known)}"
            )
        if not isinstance(content["class_range"], Mapping):
            raise UsageError(f"detection config: class_range must map class to metres, got {content['class_range']!r}")
        if not isinstance(content["dist_ths"], (list, tuple)):
            raise UsageError(f"detection config: dist_ths must be a list of metres, got {content['dist_ths']!r}")
        return cls(**content)

    def _problems(self) -> list[str]:
        problems = []
        unknown = [name for name in self.class_range if name not in CLASS_NAMES]
        if unknown or not self.class_range:
            problems.append(f"class_range needs one or more of {list(CLASS_NAMES)}, got {list(self.class_range)}")
        if not all(_positive(radius) for radius in self.class_range.values()):
            problems.append(f"class_range needs positive metres, got {dict(self.class_range)}")
        if not self.dist_ths or not all(_positive(distance) for distance in self.dist_ths):
            problems.append(f"dist_ths needs one or more positive metres, got {list(self.dist_ths)}")
        if len(set(self.dist_ths)) != len(self.dist_ths):
            problems.append(f"dist_ths must differ from each other, got {list(self.dist_ths)}")
        if self.dist_th_tp not in self.dist_ths:
            problems.append(f"dist_th_tp must be one of dist_ths {list(self.dist_ths)}, got {self.dist_th_tp!r}")
        # Recall is sampled in steps of 0.01, and the last step alone cannot be cut off.
        if not (_number(self.min_recall) and 0 <= self.min_recall < 1 and round(100 * self.min_recall) < 100):
            problems.append(f"min_recall must be in [0, 0.995), got {self.min_recall!r}")
        if not (_number(self.min_precision) and 0 <= self.min_precision < 1):
            problems.append(f"min_precision must be in [0, 1), got {self.min_precision!r}")
        if not isinstance(self.max_boxes_per_sample, int) or not _positive(self.max_boxes_per_sample):
            problems.append(f"max_boxes_per_sample must be a positive integer, got {self.max_boxes_per_sample!r}")
        if not (_number(self.mean_ap_weight) and self.mean_ap_weight >= 0):
            problems.append(f"mean_ap_weight must be zero or more, got {self.mean_ap_weight!r}")
        if self.dist_fcn != "center_distance":
            problems.append(f"dist_fcn must be 'center_distance', got {self.dist_fcn!r}")
        return problems


def detection_cvpr_2019() -> DetectionConfig:
    """The official settings of the nuScenes detection task.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/configs/detection_cvpr_2019.json.
    """
    return DetectionConfig(
        class_range={
            "car": 50,
            "truck": 50,
            "bus": 50,
            "trailer": 50,
            "construction_vehicle": 50,
            "pedestrian": 40,
            "motorcycle": 40,
            "bicycle": 40,
            "traffic_cone": 30,
            "barrier": 30,
        },
        dist_ths=(0.5, 1.0, 2.0, 4.0),
        dist_th_tp=2.0,
        min_recall=0.1,
        min_precision=0.1,
        max_boxes_per_sample=500,
        mean_ap_weight=5,
    )


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: object) -> bool:
    return _number(value) and value > 0  # type: ignore[operator]
