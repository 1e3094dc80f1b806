"""Occluders that are not annotated: buildings and trees."""

from __future__ import annotations

import numpy as np

from bevkd_deploy.data.synthetic.shapes import Color, Shape, ShapeBuilder

_WALLS: tuple[Color, ...] = (
    (170, 150, 130), (146, 96, 78), (186, 182, 172), (120, 124, 130), (204, 190, 160), (104, 92, 84),
)  # fmt: skip


def building(size: tuple[float, float, float], rng: np.random.Generator) -> Shape:
    """A block of length x depth x height metres with bands of windows."""
    length, depth, height = size
    base = np.array(_WALLS[int(rng.integers(len(_WALLS)))]) * rng.uniform(0.85, 1.1)
    wall: Color = (float(base[0]), float(base[1]), float(base[2]))
    window: Color = (float(base[0] * 0.45), float(base[1] * 0.5), float(base[2] * 0.6))
    builder = ShapeBuilder()
    builder.box((-length / 2, length / 2), (-depth / 2, depth / 2), (0.0, height), wall, reflectivity=0.25)
    storey = 3.2 / height
    columns = max(2, int(length / 3.2))
    for level in np.arange(0.4 * storey, 1 - 0.6 * storey, storey):
        for column in range(columns):
            start = (column + 0.25) / columns
            builder.decal("left right", (start, start + 0.5 / columns), (level, level + 0.5 * storey), window)
        builder.decal("front back", (0.1, 0.9), (level, level + 0.5 * storey), window)
    return builder.build()


def tree(rng: np.random.Generator) -> Shape:
    """A trunk with a crown that starts above head height."""
    crown_low, crown_high = rng.uniform(2.4, 2.9), rng.uniform(4.6, 6.5)
    green: Color = (float(rng.uniform(40, 80)), float(rng.uniform(90, 130)), float(rng.uniform(40, 60)))
    middle = (crown_low + crown_high) / 2
    builder = ShapeBuilder()
    builder.prism((0, 0), (0.17, 0.14), (0.0, crown_low), (90, 70, 52), reflectivity=0.25)
    builder.prism((0, 0), (0.5, 0.95), (crown_low, middle), green, reflectivity=0.4)
    builder.prism((0, 0), (0.95, 0.3), (middle, crown_high), green, reflectivity=0.4)
    return builder.build()
