"""Sensors that a frame had to do without: what was dropped, where and why, and the count of it all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

OnError = Literal["fail", "drop_sensor"]
SensorKind = Literal["camera", "lidar", "sweep"]

_PLURALS: dict[SensorKind, str] = {"camera": "cameras", "lidar": "LiDAR turns", "sweep": "LiDAR sweeps"}
_REASONS_SHOWN = 3


@dataclass(frozen=True)
class DroppedSensor:
    """One sensor that one frame goes without.

    Attributes:
        token: sample token.
        kind: camera, lidar (the keyframe's turn) or sweep (an earlier one).
        sensor: channel name, CAM_FRONT or LIDAR_TOP say.
        reason: the error it would have been, with the path.
    """

    token: str
    kind: SensorKind
    sensor: str
    reason: str


class DropLog:
    """Counts dropped sensors; a frame that is read again is counted once."""

    def __init__(self) -> None:
        self._seen: dict[DroppedSensor, None] = {}

    def add(self, dropped: Iterable[DroppedSensor]) -> list[DroppedSensor]:
        """Remember events; returns those that are new."""
        new = [event for event in dict.fromkeys(dropped) if event not in self._seen]
        self._seen.update(dict.fromkeys(new))
        return new

    def __len__(self) -> int:
        return len(self._seen)

    def summary(self) -> dict[str, Any]:
        """JSON-ready: counts by kind, frames concerned, and every event."""
        counts = {kind: sum(event.kind == kind for event in self._seen) for kind in _PLURALS}
        return {
            "counts": {kind: count for kind, count in counts.items() if count},
            "frames": len({event.token for event in self._seen}),
            "events": [asdict(event) for event in self._seen],
        }

    def lines(self, what: str) -> list[str]:
        """The report in words, with the first few reasons; no lines where nothing was dropped.

        Args:
            what: what the frames belong to, "training the student" say.
        """
        if not self._seen:
            return []
        found = self.summary()
        counts = ", ".join(f"{_PLURALS[kind]} {count}" for kind, count in found["counts"].items())
        noun = "frame" if found["frames"] == 1 else "frames"
        lines = [f"dropped sensors in {found['frames']} {noun} while {what}: {counts} (data.on_error: drop_sensor)"]
        lines += [
            f"  sample {event.token}: {event.sensor}: {event.reason}" for event in list(self._seen)[:_REASONS_SHOWN]
        ]
        if len(self) > _REASONS_SHOWN:
            lines.append(f"  and {len(self) - _REASONS_SHOWN} more; bevkd data check lists every broken file")
        return lines
