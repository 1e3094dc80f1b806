"""Peak memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.benchmark.memory import artefact_peak_rss_mb, peak_rss_mb
from bevkd_deploy.contracts.errors import CannotRunHere


def test_the_peak_stays_after_the_memory_is_freed() -> None:
    hold = np.ones(60_000_000, np.uint8)
    held = peak_rss_mb()
    hold = hold[:1].copy()
    assert hold.size == 1
    assert held > 60
    assert peak_rss_mb() > held - 5  # the kernel counts pages in batches, so the last bits come and go


def test_an_artefact_is_measured_in_a_process_of_its_own(artefact: Path) -> None:
    ballast = np.ones(400_000_000, np.uint8)  # in this process; a child that inherited the peak would report it
    measured = artefact_peak_rss_mb(artefact, threads=1)
    assert ballast[0] == 1
    assert peak_rss_mb() > 400
    assert 30 < measured < 400


def test_an_artefact_that_cannot_run_gives_its_reason(artefact: Path) -> None:
    artefact.write_bytes(b"changed")
    with pytest.raises(CannotRunHere, match="could not be measured: .*not the file its sidecar describes"):
        artefact_peak_rss_mb(artefact)
