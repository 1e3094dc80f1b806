"""A stopwatch for the steps of one frame."""

from __future__ import annotations

import time


class StageTimer:
    """Milliseconds of consecutive steps; each `lap` ends one and starts the next.

    Attributes:
        stages_ms: name of each finished step to its milliseconds.
    """

    def __init__(self) -> None:
        self.stages_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the step that has run since the last lap, or since the timer was made."""
        now = time.perf_counter()
        self.stages_ms[name] = 1e3 * (now - self._last)
        self._last = now
