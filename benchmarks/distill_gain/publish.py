"""Write the page and the plot of the study from its result file: python benchmarks/distill_gain/publish.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t as student_t

from bevkd_deploy.contracts.files import read_json, write_text
from bevkd_deploy.report.palette import ACTOR_COLORS
from bevkd_deploy.report.plots import make_panels, svg_text

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results" / "distillation.md"
PLOT = HERE.parents[1] / "docs" / "figures" / "distill_gain.svg"
_CONFIDENCE = 0.95

Result = dict[str, Any]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and the ends of its interval by Student's t over the seeds."""
    half = student_t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def gains(result: Result, arm: str) -> dict[str, tuple[float, float, float]]:
    """Paired by seed: what an arm adds to the mAP of the student alone, and the share of the gap that it closes."""
    alone = np.array(result["arms"]["alone"]["mAP"])
    added = np.array(result["arms"][arm]["mAP"]) - alone
    return {"mAP": interval(added), "closed": interval(added / (result["teacher"]["mAP"] - alone))}


def arms_table(result: Result) -> str:
    """One row an arm: mAP by seed, spread, gain, share of the gap closed."""
    seeds = result["seeds"]
    head = ["arm", *(f"mAP, seed {seed}" for seed in seeds), "mean ± std", "gain (95 %)", "of the gap closed (95 %)"]
    head += ["NDS"]
    rows = []
    for name, arm in result["arms"].items():
        values = np.array(arm["mAP"])
        row = [name, *(f"{value:.3f}" for value in values), f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"]
        if name == "alone":
            row += ["–", "–"]
        else:
            found = gains(result, name)
            row.append("{:+.3f} ({:+.3f} to {:+.3f})".format(*found["mAP"]))
            row.append("{:.0f} % ({:.0f} to {:.0f})".format(*(100 * value for value in found["closed"])))
        rows.append([*row, f"{np.mean(arm['NDS']):.3f}"])
    teacher = result["teacher"]
    blanks = ["" for _ in seeds]
    rows.append(["teacher", *blanks, f"{teacher['mAP']:.3f}", "", "", f"{teacher['NDS']:.3f}"])
    return _table(head, rows)


def networks_table(result: Result) -> str:
    """Size and latency of both networks."""
    head = ["network", "parameters", "p50 ms", "p90 ms", "of it the network, ms"]
    rows = []
    for name, network in result["networks"].items():
        latency = network["latency_ms"]
        rows.append(
            [
                name,
                f"{network['parameters'] / 1e6:.3f} M",
                f"{latency['p50']:.1f}",
                f"{latency['p90']:.1f}",
                f"{network['stages_ms']['engine']:.1f}",
            ]
        )
    return _table(head, rows)


def settings_list(result: Result) -> str:
    """What each arm teaches with."""
    lines = []
    for name, arm in result["arms"].items():
        if arm["distill"] is None:
            lines.append(f"- `{name}`: no teacher (`bevkd train RECIPE --no-distill`).")
            continue
        text = yaml.safe_dump(arm["distill"], default_flow_style=True, width=10_000, sort_keys=False).strip()
        lines.append(f"- `{name}`: `{text}`")
    return "\n".join(lines) + "\n"


def plot(result: Result) -> str:
    """One row an arm: a dot a seed and a bar at the mean, between the student alone and the teacher."""
    names = list(result["arms"])
    figure, (axes,) = make_panels(1, (7.0, 0.8 + 0.32 * len(names)))
    for place, name in enumerate(reversed(names)):
        values = result["arms"][name]["mAP"]
        color = ACTOR_COLORS["student"] if name != "alone" else ACTOR_COLORS["engine"]
        axes.plot(values, [place] * len(values), "o", color=color, markersize=5, alpha=0.7)
        axes.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2.5)
    axes.axvline(result["teacher"]["mAP"], color=ACTOR_COLORS["teacher"], linewidth=2)
    axes.axvline(
        float(np.mean(result["arms"]["alone"]["mAP"])), color=ACTOR_COLORS["engine"], linewidth=1, linestyle=":"
    )
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlabel("mAP (line: teacher; dotted: student alone)", fontsize=9)
    label = "mAP of every arm and seed, between the student alone and its teacher"
    return svg_text(figure, "distill-gain").replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1) + "\n"


def scan_table(scan: Result) -> str:
    """One row a term: mAP at each of its weights."""
    rows: dict[str, list[str]] = {}
    for run in scan["runs"]:
        rows.setdefault(run["term"], []).append(f"{run['weight']:g}: {run['mAP']:.3f}")
    columns = max(map(len, rows.values()))
    head = ["term", *["weight: mAP"] * columns]
    return _table(head, [[term, *cells, *[""] * (columns - len(cells))] for term, cells in rows.items()])


def page(result: Result, scan: Result) -> str:
    """The whole page."""
    template = (HERE / "page.md").read_text(encoding="utf-8")
    environment = result["environment"]
    mix = gains(result, "mix")
    alone = result["arms"]["alone"]["mAP"]
    values = {
        "arms": arms_table(result),
        "networks": networks_table(result),
        "settings": settings_list(result),
        "scan": scan_table(scan),
        "scan_seed": str(scan["seed"]),
        "scan_alone": f"{scan['alone']:.3f}",
        "alone": f"{np.mean(alone):.3f}",
        "mix": f"{np.mean(result['arms']['mix']['mAP']):.3f}",
        "teacher": f"{result['teacher']['mAP']:.3f}",
        "closed": "{:.0f} % ({:.0f} to {:.0f} %)".format(*(100 * value for value in mix["closed"])),
        "seeds": ", ".join(map(str, result["seeds"])),
        "smaller": f"{result['networks']['teacher']['parameters'] / result['networks']['student']['parameters']:.1f}",
        "origin": f"Measured on {environment['device']}, {environment['date'][:10]}, commit "
        f"{(environment['commit'] or 'unknown')[:12]}.",
    }
    for key, value in values.items():
        template = template.replace("{{ " + key + " }}", value.rstrip("\n"))
    return template


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


if __name__ == "__main__":
    study = read_json(HERE / "results.json", "result")
    write_text(PAGE, page(study, read_json(HERE / "scan.json", "scan")))
    write_text(PLOT, plot(study))
