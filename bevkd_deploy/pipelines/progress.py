"""Progress of a long stage: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bevkd_deploy.data.events import DropLog

_LINE_EVERY_SECONDS = 20.0
_LATE_SECONDS = 2.0


class Bar:
    """Handle of one running bar."""

    def __init__(self, console: Console, title: str, total: int, progress: Progress | None) -> None:
        self._console, self._title, self._total, self._progress = console, title, total, progress
        self._task = progress.add_task(title, total=total, note="") if progress else None
        self._done = 0
        self._last_line = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total is reached."""
        self._done = done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"  {self._title}: {done}/{self._total} {note}".rstrip())

    def advance(self, note: str = "") -> None:
        """One more step is done."""
        self.update(self._done + 1, note)


@contextmanager
def bar(console: Console, title: str, total: int) -> Iterator[Bar]:
    """Show a bar while the block runs, and one line with its time afterwards."""
    start = time.monotonic()
    if console.is_terminal and not console.quiet:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield Bar(console, title, total, progress)
    else:
        console.print(f"  {title} ({total})")
        yield Bar(console, title, total, None)
    console.print(f"  {title}: done in {time.monotonic() - start:.1f} s")


@contextmanager
def late_bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work that is mostly quick: it shows only after two seconds. The block calls (title, done, total).

    The numbers count bytes; megabytes are shown.
    """
    start = time.monotonic()
    shown: dict[str, Bar] = {}
    with ExitStack() as stack:

        def progress(title: str, done: int, total: int) -> None:
            if title not in shown and time.monotonic() - start > _LATE_SECONDS and done < total:
                stack.close()  # the bar of the step before is done
                shown[title] = stack.enter_context(bar(console, f"{title}, MB", total // 1_000_000))
            if title in shown:
                shown[title].update(done // 1_000_000)
                if done >= total:
                    stack.close()  # at once: what comes next may show a bar of its own

        yield progress


def print_drops(drops: DropLog, what: str, console: Console) -> None:
    """Say which sensors frames went without; nothing where there were none."""
    for line in drops.lines(what):
        console.print(f"  {line}", markup=False)


@contextmanager
def reported_drops(drops: DropLog, what: str, console: Console) -> Iterator[None]:
    """Say at the end of a block, also one that fails or is interrupted, which sensors frames went without."""
    try:
        yield
    finally:
        print_drops(drops, what, console)
