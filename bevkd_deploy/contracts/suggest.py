"""Did-you-mean hints, in one wording everywhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Hint ` Did you mean 'x'?` for the closest known name, or '' when none is close."""
    close = difflib.get_close_matches(got, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
