from __future__ import annotations

from typing import Any

from bevkd_deploy.report.bench_view import parse_bench
from bevkd_deploy.report.provenance import provenance


def test_every_hash_of_the_manifest_is_found(bench: dict[str, Any]) -> None:
    manifest = {
        "recipe": {"name": "x", "sha256": "1" * 64},
        "stages": [{"name": "distill", "inputs": {"teacher.safetensors": "2" * 64}, "seconds": 3}],
    }
    assert provenance(parse_bench(bench), manifest) == [
        ("engine of tensorrt-fp16", "ab" * 32),
        ("commit of the measurement", "c" * 40),
        ("manifest › recipe › sha256", "1" * 64),
        ("manifest › stages › distill › inputs › teacher.safetensors", "2" * 64),
    ]
