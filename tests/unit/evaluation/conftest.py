from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_record() -> Callable[..., dict[str, Any]]:
    """A factory of well-formed records: a parked car at the origin; keywords replace fields, None drops one."""

    def make(token: str = "a", xy: tuple[float, float] = (0.0, 0.0), **fields: Any) -> dict[str, Any]:
        record = {
            "sample_token": token,
            "translation": [*xy, 0.0],
            "size": [2.0, 4.0, 1.5],
            "rotation": [1.0, 0.0, 0.0, 0.0],
            "velocity": [0.0, 0.0],
            "detection_name": "car",
            "attribute_name": "vehicle.parked",
            "detection_score": 0.5,
            **fields,
        }
        return {key: value for key, value in record.items() if value is not None}

    return make
