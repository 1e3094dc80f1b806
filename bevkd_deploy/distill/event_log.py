"""What a training logs: `events.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from bevkd_deploy.data.events import DropLog, DroppedSensor

EVENT_EVERY_STEPS = 10


@dataclass(frozen=True)
class StepRecord:
    """What is logged of a step: the weighted losses and their sum, and of each distillation term more."""

    losses: dict[str, float]
    raw: dict[str, float]
    weights: dict[str, float]
    gradient_norms: dict[str, float]


class EventLog:
    """`events.jsonl` and TensorBoard; a resumed run first drops the lines after the step it goes on from.

    Only the main process writes; in the others every call does nothing.
    """

    def __init__(self, run_dir: Path, is_main: bool, truncate_after: int | None) -> None:
        self.path = run_dir / "events.jsonl"
        self.is_main = is_main
        self.run_dir = run_dir
        self.start = time.monotonic()
        self.truncate_after = truncate_after
        self._drops = DropLog()

    def __enter__(self) -> EventLog:
        if self.is_main:
            kept: list[str] = []
            if self.truncate_after is not None and self.path.is_file():
                lines = self.path.read_text(encoding="utf-8").splitlines()
                kept = [line for line in lines if _belongs_before(line, self.truncate_after)]
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            self._drops.add(event for line in kept if (event := _dropped_of(line)))
            self.handle = self.path.open("a", encoding="utf-8")
            first = None if self.truncate_after is None else self.truncate_after + 1
            self.board = SummaryWriter(str(self.run_dir / "tb"), purge_step=first)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_main:
            self.handle.close()
            self.board.close()

    def dropped(self, step: int, found: list[DroppedSensor]) -> None:
        """One line for each sensor that a frame goes without, the first time that it is met."""
        for event in self._drops.add(found):
            self._line({"event": "sensor_dropped", "step": step, **asdict(event)})

    def step(self, step: int, epoch: int, learning_rate: float, record: StepRecord) -> None:
        """One line every few steps, and in each step where gradients were measured."""
        if step % EVENT_EVERY_STEPS and not record.gradient_norms:
            return
        event = {"event": "step", "step": step, "epoch": epoch, "learning_rate": learning_rate}
        event |= {name: values for name, values in asdict(record).items() if values}
        self._line({**event, "seconds": round(time.monotonic() - self.start, 3)})
        named = {**record.losses, "learning_rate": learning_rate}
        for group in ("raw", "weights", "gradient_norms"):
            named |= {f"{group}/{name}": value for name, value in getattr(record, group).items()}
        self._scalars(step, named)

    def evaluation(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """What an evaluation after so many finished epochs found."""
        self._line({"event": "evaluation", "step": step, "epoch": epoch, **metrics})
        self._scalars(step, metrics)

    def _line(self, event: dict[str, Any]) -> None:
        if self.is_main:
            self.handle.write(json.dumps(event) + "\n")
            self.handle.flush()

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self.is_main:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)


def _dropped_of(line: str) -> DroppedSensor | None:
    event = json.loads(line)
    if event.get("event") != "sensor_dropped":
        return None
    return DroppedSensor(**{field.name: event[field.name] for field in fields(DroppedSensor)})


def _belongs_before(line: str, step: int) -> bool:
    """Whether an event was before the state of a step; a line cut short by a kill counts as later.

    The evaluation at that very step came after its state, and is made again.
    """
    try:
        event = json.loads(line)
        return bool(event["step"] < step or (event["step"] == step and event["event"] != "evaluation"))
    except (ValueError, KeyError):
        return False
