"""Write the measured tables into docs/synthetic.md, between their markers: python benchmarks/synthetic/publish.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bevkd_deploy.contracts.files import read_json, write_text

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "synthetic.md"

Result = dict[str, Any]


def fusion_table(result: Result) -> str:
    """mAP of each arm by seed, and what fusion adds."""
    seeds = result["seeds"]
    names = {"fusion": "cameras and LiDAR", "lidar": "LiDAR alone", "camera": "cameras alone"}
    rows = []
    for arm, figures in result["figures"].items():
        scores = [f"{value:.3f}" for value in figures["mAP"]]
        spread = f"{result['mean_mAP'][arm]:.3f} ± {result['std_mAP'][arm]:.3f}"
        gain = "" if arm == "fusion" else f"{min(result['gain_of_fusion_mAP'][arm]):+.3f}"
        rows.append([names[arm], *scores, spread, f"{np.mean(figures['NDS']):.3f}", gain])
    head = ["sensors", *(f"mAP, seed {seed}" for seed in seeds), "mean ± std", "mean NDS", "least gain of fusion"]
    return _table(head, rows) + _origin(result)


def difficulty_table(result: Result) -> str:
    """What each difficulty looks like, and what it costs networks trained on the normal world."""
    rows = []
    for name, figures in result["difficulties"].items():
        rows.append(
            [
                name,
                f"{figures['objects_per_frame']:.0f}",
                f"{figures['objects_with_points_per_frame']:.0f}",
                f"{figures['median_points_per_seen_object']:.0f}",
                f"{100 * figures['share_seen_below_40_percent']:.0f} %",
                f"{figures['farthest_object_m']:.0f} m",
                f"{np.mean(figures['mAP']):.3f}",
                f"{np.mean(figures['NDS']):.3f}",
            ]
        )
    head = ["difficulty", "objects a frame", "of them with points", "median points of these"]
    head += ["seen by less than 40 %", "farthest", "mAP", "NDS"]
    return _table(head, rows) + _origin(result)


def speed_table(result: Result) -> str:
    """Frames a second of one core."""
    rows = []
    for profile, figures in result["profiles"].items():
        for difficulty in (key for key, value in figures.items() if isinstance(value, dict)):
            one = figures[difficulty]
            height, width = one["image_hw_px"]
            rows.append(
                [
                    profile,
                    difficulty,
                    f"6 x {width}x{height}",
                    f"32 x {one['lidar_columns']}",
                    str(one["sweeps_between"]),
                    f"{one['megabytes'] / one['frames']:.1f}",
                    f"{one['frames_per_s']:.1f}",
                    f"{one['frames_per_processor_s']:.1f}",
                    f"{figures['jpeg_ms_per_frame']:.0f}",
                ]
            )
    head = ["profile", "difficulty", "images", "LiDAR rays", "sweeps between keyframes", "MB a frame", "frames/s"]
    head += ["frames/s of processor time", "of a frame, JPEG, ms"]
    return _table(head, rows) + _origin(result)


TABLES: dict[str, Callable[[Result], str]] = {
    "fusion": fusion_table,
    "difficulty": difficulty_table,
    "speed": speed_table,
}


def page_with_tables(text: str) -> str:
    """The page with every table as its result file has it."""
    for name, table in TABLES.items():
        content = table(read_json(HERE / f"{name}.json", "result"))
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, content=content: f"{found[1]}\n{content}\n{found[2]}", text)
        assert count == 1, f"{PAGE} needs the markers {name}:begin and {name}:end once"
    return text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _origin(result: Result) -> str:
    environment = result["environment"]
    date, commit = environment["date"][:10], (environment["commit"] or "unknown")[:12]
    return f"\nMeasured on {environment['device']}, {date}, commit {commit}.\n"


if __name__ == "__main__":
    write_text(PAGE, page_with_tables(PAGE.read_text(encoding="utf-8")))
