"""The run's `log.txt`: every line of talk, with its time, also after a kill."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console


class LoggedConsole(Console):
    """A console like another one, whose printed lines also go to a file, one write each."""

    def __init__(self, like: Console, log: Path) -> None:
        super().__init__(
            file=like.file,
            quiet=like.quiet,
            width=None if like.is_terminal else like.width,
            soft_wrap=like.soft_wrap,
            force_terminal=like.is_terminal,
            no_color=like.no_color,
            highlight=False,
        )
        self._log = log

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and append what is text to the log."""
        super().print(*objects, **options)
        words = [item for item in objects if isinstance(item, str)]
        if words:
            with self._log.open("a", encoding="utf-8") as handle:
                handle.write(f"{datetime.now().isoformat(timespec='seconds')} {' '.join(words)}\n")
