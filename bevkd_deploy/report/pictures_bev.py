"""Bird's-eye view of one frame: LiDAR points and boxes, axes in metres of the LiDAR frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.files import write_atomic
from bevkd_deploy.report import wireframe
from bevkd_deploy.report.frame_view import ACTORS, FrameView, box_array
from bevkd_deploy.report.palette import ACTOR_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Longer side of the map in the picture, and the margins around it: left, right, bottom, top.
MAP_PX = 800
MARGINS_PX = (72, 20, 60, 88)
DPI = 100

#: Truth is widest and lowest, so that a box that hits it shows a coloured line inside a coloured line.
LINE_WIDTHS = {"truth": 3.0, "teacher": 1.4, "student": 1.4}

POINT_FIELDS = 5


def draw_bev(frame_view: FrameView, path: Path | str, min_score: float = 0.25) -> Path:
    """Draw points and boxes seen from above.

    The map covers `frame_view.range_m` at one scale in x and y, `MAP_PX` pixels along its longer side; lidar x
    points right and lidar y points up. A line leaves each box through its front.

    Raises:
        DataError: the point file is not float32 [N, 5].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x0, y0, z0, x1, y1, z1 = frame_view.range_m
    scale = MAP_PX / max(x1 - x0, y1 - y0)
    left, right, bottom, top = MARGINS_PX
    map_w, map_h = scale * (x1 - x0), scale * (y1 - y0)
    width, height = round(map_w + left + right), round(map_h + bottom + top)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / width, bottom / height, map_w / width, map_h / height))
    axes.set(xlim=(x0, x1), ylim=(y0, y1), facecolor="#fbfbfc")
    axes.set_xlabel("x of the lidar frame, to the right (m)")
    axes.set_ylabel("y of the lidar frame, forward (m)")
    axes.grid(True, color="#e3e5e9", linewidth=0.6)
    axes.set_axisbelow(True)
    if frame_view.points_path is not None:
        _draw_points(axes, read_points(frame_view.points_path), (z0, z1), scale)
    _draw_origin(axes, scale)
    for actor in ACTORS:
        _draw_boxes(axes, box_array(frame_view.shown(actor, min_score)), actor, scale)
    _draw_title(axes, frame_view, min_score)
    # Metadata would hold the library version: the same frame must give the same bytes.
    return write_atomic(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))


def read_points(path: Path) -> NDArray[np.float32]:
    """Points [N, 5] of a binary file.

    Raises:
        DataError: the file is missing or its size is not a multiple of five float32.
    """
    if not path.is_file():
        raise DataError(f"point file not found: {path}")
    size = path.stat().st_size
    if size % (4 * POINT_FIELDS):
        raise DataError(
            f"point file {path} has {size} bytes, expected a multiple of {4 * POINT_FIELDS} (float32 [N, 5]); it may "
            "be truncated"
        )
    return np.fromfile(path, dtype=np.float32).reshape(-1, POINT_FIELDS)


def _draw_points(axes: Axes, points: NDArray[np.float32], z_range_m: tuple[float, float], scale: float) -> None:
    low, high = z_range_m
    points = points[(points[:, 2] >= low) & (points[:, 2] <= high)]
    if not len(points):
        return
    # Most returns are ground: they are drawn faint, and what stands a metre above them dark.
    above_ground = np.clip(points[:, 2] - np.median(points[:, 2]), 0, 1)
    shade = np.column_stack([np.tile([0.28, 0.33, 0.42], (len(points), 1)), 0.35 + 0.5 * above_ground])
    size = float(np.clip(0.12 * scale, 0.6, 4.0))
    axes.scatter(points[:, 0], points[:, 1], s=size, c=shade, linewidths=0, zorder=1)


def _draw_origin(axes: Axes, scale: float) -> None:
    reach = 14 / scale
    axes.fill([-0.45 * reach, 0, 0.45 * reach], [-0.6 * reach, reach, -0.6 * reach], color="#20242c", zorder=2)


def _draw_boxes(axes: Axes, boxes: NDArray[np.float64], actor: str, scale: float) -> None:
    from matplotlib.collections import LineCollection

    lines = [*wireframe.ground_outline(boxes), *wireframe.ground_heading(boxes, overhang_m=4 / scale)]
    width = LINE_WIDTHS[actor]
    zorder = 3 + ACTORS.index(actor)
    collection = LineCollection(lines, colors=ACTOR_COLORS[actor], linewidths=width, zorder=zorder, capstyle="round")
    if actor == "truth":
        collection.set_alpha(0.55)
    axes.add_collection(collection, autolim=False)


def _draw_title(axes: Axes, frame_view: FrameView, min_score: float) -> None:
    from matplotlib.lines import Line2D

    present = [actor for actor in ACTORS if actor in frame_view.boxes]
    handles = [
        Line2D([], [], color=ACTOR_COLORS[actor], linewidth=LINE_WIDTHS[actor] + 1,
               label=f"{actor}: {len(frame_view.shown(actor, min_score))}")
        for actor in present
    ]  # fmt: skip
    remark = f"score ≥ {min_score:g}, and all of the truth; a line leaves each box at its front"
    for offset, size, weight, words in ((45, 11, "bold", f"frame {frame_view.token}"), (28, 9, "normal", remark)):
        axes.annotate(words, (0, 1), xycoords="axes fraction", xytext=(0, offset), textcoords="offset points",
                      fontsize=size, fontweight=weight, va="center")  # fmt: skip
    if handles:
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), fontsize=9,
                    frameon=False, borderaxespad=0.2, borderpad=0)  # fmt: skip
