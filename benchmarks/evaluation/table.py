"""The tables of docs/evaluation.md from results.json: python benchmarks/evaluation/table.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bevkd_deploy.contracts.files import read_json

RESULTS = Path(__file__).resolve().parent / "results.json"


def tables(result: dict[str, Any]) -> str:
    """Markdown: the devkit against ours, then whole splits."""
    lines = [
        "1000 frames of 200 detections; the devkit's time is that of its `accumulate` and scores on loaded boxes, for",
        "files that of loading and filtering too:",
        "",
        "| truths a frame | start from | nuscenes-devkit s | bevkd s | times faster |",
        "|---|---|---|---|---|",
    ]
    starts = {
        "table": "columns in memory",
        "records": "records in memory, all checks",
        "files": "JSON files, all checks",
    }
    for row in result["against_devkit"].values():
        for key, name in starts.items():
            theirs = row["devkit_s"]["accumulate_and_score"]
            theirs += row["devkit_s"]["load_and_filter"] if key == "files" else 0
            cells = [row["truth_boxes_per_frame"], name, f"{theirs:.1f}", f"{row['ours_s'][key]:.2f}"]
            lines.append(f"| {' | '.join(map(str, cells))} | {row['times_faster'][key]:.0f} |")
    lines += [
        "",
        "6019 frames of 500 detections, 3.0 million boxes, on one core:",
        "",
        "| truths a frame | what | processor s | clock s | peak GiB |",
        "|---|---|---|---|---|",
    ]
    for row in result["whole_split"].values():
        size = sum(row["file_mb"]) / 1000
        table, files = row["table"], row["bevkd_evaluate"]
        truths = row["truth_boxes_per_frame"]
        lines.append(f"| {truths} | columns in memory | {table['evaluation_s']:.1f} | | {table['peak_gib']:.1f} |")
        what = f"`bevkd evaluate`, {size:.1f} GB of JSON"
        lines.append(f"| {truths} | {what} | {files['cpu_s']:.1f} | {files['wall_s']:.1f} | {files['peak_gib']:.1f} |")
    draws = result["bootstrap"]
    lines += [
        "",
        f"{draws['replicates']} bootstrap draws of two results on {draws['frames']} frames of "
        f"{draws['predicted_boxes_per_frame']} detections: {draws['seconds']:.0f} s.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(tables(read_json(RESULTS, "result")), end="")  # noqa: T201
