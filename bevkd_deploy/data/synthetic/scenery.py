"""What is not annotated: buildings, trees, and street furniture of the size of annotated classes."""

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


#: Street furniture: length, width, height in metres and relative spread. LiDAR returns on a bollard are much like those
#: on a cone, on a planter like those on a barrier, on a bush or a cabinet like those on a pedestrian, on a skip like
#: those on a car; colours and outlines differ.
FURNITURE_SIZES_M: dict[str, tuple[float, float, float, float]] = {
    "bollard": (0.30, 0.30, 0.95, 0.06),
    "planter": (0.52, 2.40, 1.0, 0.05),
    "bush": (0.70, 0.70, 1.70, 0.10),
    "cabinet": (0.55, 0.70, 1.60, 0.10),
    "skip": (4.0, 1.9, 1.55, 0.06),
}
_HEDGE: tuple[Color, ...] = ((52, 96, 44), (70, 112, 52), (44, 78, 50))
_PAINT: tuple[Color, ...] = ((70, 76, 74), (40, 66, 52), (58, 60, 70))
_SKIP_PAINT: tuple[Color, ...] = ((42, 74, 116), (50, 92, 66), (128, 92, 40))


def furniture(kind: str, rng: np.random.Generator) -> tuple[Shape, tuple[float, float, float]]:
    """A piece of street furniture and its length, width and height.

    Args:
        kind: one of FURNITURE_SIZES_M.
        rng: draws size and colour.
    """
    length, width, height, spread = FURNITURE_SIZES_M[kind]
    factor = 1.0 + spread * np.clip(rng.standard_normal(3), -2, 2)
    length, width, height = (
        float(value * share) for value, share in zip((length, width, height), factor.tolist(), strict=True)
    )
    half_l, half_w = length / 2, width / 2
    paint = {"planter": ((158.0, 154.0, 146.0),), "bush": _HEDGE, "skip": _SKIP_PAINT}.get(kind, _PAINT)
    color = paint[int(rng.integers(len(paint)))]
    builder = ShapeBuilder()
    if kind == "bollard":
        for low, high, shine in ((0.0, 0.7, 0.5), (0.7, 0.82, 1.0), (0.82, 1.0, 0.5)):
            tone = (176.0, 178.0, 180.0) if shine == 1.0 else color
            builder.prism((0, 0), (half_w, half_w), (low * height, high * height), tone, reflectivity=shine)
    elif kind == "planter":
        builder.box((-half_l, half_l), (-half_w, half_w), (0.04, 0.55 * height), color, reflectivity=0.5)
        hedge = _HEDGE[int(rng.integers(len(_HEDGE)))]
        inner = half_l * 0.7
        builder.box((-inner, inner), (-half_w * 0.95, half_w * 0.95), (0.55 * height, height), hedge, reflectivity=0.45)
    elif kind == "bush":
        middle = 0.45 * height
        builder.prism((0, 0), (half_w * 0.75, half_w), (0.05, middle), color, reflectivity=0.3)
        builder.prism((0, 0), (half_w, half_w * 0.35), (middle, height), color, reflectivity=0.3)
    else:
        inset = (0.25, 0.25, 0.0) if kind == "skip" else (0.0, 0.0, 0.0)
        builder.box((-half_l, half_l), (-half_w, half_w), (0.05, height), color, top_inset=inset, reflectivity=0.3)
        builder.decal("front back left right", (0.06, 0.94), (0.86, 0.94), (30, 32, 34))
    return builder.build(), (length, width, height)
