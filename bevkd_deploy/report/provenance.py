"""Hashes of everything a report rests on, found in the files themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bevkd_deploy.report.bench_view import Bench

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def provenance(bench: Bench, manifest: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Pairs (what, hash): the measured files first, then every commit and sha256 of the manifest."""
    pairs = [(f"engine of {row.key}", row.engine_sha256) for row in bench.backends if row.engine_sha256]
    pairs += [("commit of the measurement", bench.commit)] if bench.commit else []
    pairs += list(_hashes(manifest or {}, "manifest"))
    return pairs


def _hashes(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if HASH.fullmatch(value):
            yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _hashes(item, f"{where} › {key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            name = item.get("name", index) if isinstance(item, Mapping) else index
            yield from _hashes(item, f"{where} › {name}")
