"""Bicycle racks: nuScenes does not evaluate the cycles that stand in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.evaluation.box_table import Array, BoxTable

#: Sample token -> racks as {translation, size (w, l, h), rotation (w, x, y, z)}, global frame, metres.
Racks = Mapping[str, Sequence[Mapping[str, Any]]]

_CYCLES = [CLASS_NAMES.index(name) for name in ("bicycle", "motorcycle")]
_UNIT_TOLERANCE = 1e-14  # pyquaternion leaves a quaternion this close to length one as it is
_FIELDS = {"translation": 3, "size": 3, "rotation": 4}


def outside_racks(boxes: BoxTable, racks: Racks) -> NDArray[np.bool_]:
    """Mask [n] of the boxes that are no cycle, or whose centre lies in no rack of their sample.

    A centre on the surface of a rack is inside. A sample that `racks` does not name has none.

    Raises:
        DataError: a rack is malformed; the message names its sample and index.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/common/loaders.py (filter_eval_boxes) and
        nuscenes/utils/geometry_utils.py (points_in_box), whose order of operations decides for a centre on the surface.
    """
    outside = np.ones(len(boxes), dtype=bool)
    cycles = np.flatnonzero(np.isin(boxes.label, _CYCLES))
    first = np.searchsorted(boxes.sample[cycles], np.arange(len(boxes.tokens) + 1))
    for index, token in enumerate(boxes.tokens):
        for number, rack in enumerate(racks.get(token, ())):
            center_m, size_m, rotation = _fields(rack, token, number)
            rows = cycles[first[index] : first[index + 1]]
            if len(rows):
                outside[rows[_inside(boxes.translation_m[rows], center_m, size_m, rotation)]] = False
    return outside


def _inside(points_m: Array, center_m: Array, size_m: Array, rotation: Array) -> NDArray[np.bool_]:
    """Mask [n] of points [n, 3] inside a box or on its surface."""
    width, length, height = size_m
    # Four corners of the box: one, and its neighbours along length, width and height.
    corners = np.stack(
        [
            length / 2 * np.array([1, -1, 1, 1]),
            width / 2 * np.array([1, 1, -1, 1]),
            height / 2 * np.array([1, 1, 1, -1]),
        ]
    )
    corners = np.dot(_matrix(rotation), corners) + center_m[:, None]
    edges = [corners[:, neighbour] - corners[:, 0] for neighbour in (1, 2, 3)]
    limits = [np.dot(edge, edge) for edge in edges]
    inside = np.ones(len(points_m), dtype=bool)
    for index, point_m in enumerate(points_m):  # one by one: a product with many points at once may round otherwise
        offset = (point_m - corners[:, 0])[:, None]
        along = [np.dot(edge, offset)[0] for edge in edges]
        inside[index] = all(0 <= part <= limit for part, limit in zip(along, limits, strict=True))
    return inside


def _matrix(rotation: Array) -> Array:
    """Rotation matrix [3, 3] of a quaternion (w, x, y, z) of any positive length."""
    squared = np.dot(rotation, rotation)
    unit = abs(1.0 - squared) < _UNIT_TOLERANCE
    w, x, y, z = rotation if unit else rotation / np.sqrt(squared)
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    right = np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])
    matrix: Array = np.dot(left, right.T)[1:, 1:]
    return matrix


def _fields(rack: Mapping[str, Any], token: str, number: int) -> tuple[Array, Array, Array]:
    def refuse(message: str) -> NoReturn:
        raise DataError(f"ground truth: bike_racks of sample {token!r}, rack {number}: {message}")

    if not isinstance(rack, Mapping):
        refuse(f"a rack must be an object, got {type(rack).__name__}")
    arrays = []
    for field, width in _FIELDS.items():
        value = rack.get(field)
        try:
            array = np.array(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            refuse(f"{field} must be {width} numbers, got {value!r}")
        if array.shape != (width,) or not np.isfinite(array).all():
            refuse(f"{field} must be {width} finite numbers, got {value!r}")
        arrays.append(array)
    center_m, size_m, rotation = arrays
    if (size_m <= 0).any():
        refuse(f"size (w, l, h) must be positive metres, got {size_m.tolist()}")
    if not rotation.any():
        refuse(f"rotation must be a quaternion (w, x, y, z), got {rotation.tolist()}")
    return center_m, size_m, rotation
