"""The object classes: sizes, looks and composite shapes inside their annotated boxes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bevkd_deploy.data.synthetic.portable import cos_sin_of
from bevkd_deploy.data.synthetic.shapes import Color, Shape, ShapeBuilder

#: Mean length, width, height in metres and relative spread; the means are near those of nuScenes.
CLASS_SIZES_M: dict[str, tuple[float, float, float, float]] = {
    "car": (4.55, 1.92, 1.70, 0.06),
    "truck": (6.9, 2.5, 2.9, 0.10),
    "trailer": (9.8, 2.85, 3.75, 0.12),
    "bus": (11.0, 2.9, 3.4, 0.06),
    "construction_vehicle": (6.3, 2.75, 3.1, 0.08),
    "bicycle": (1.72, 0.62, 1.15, 0.05),
    "motorcycle": (2.1, 0.80, 1.25, 0.05),
    "pedestrian": (0.72, 0.66, 1.75, 0.06),
    "traffic_cone": (0.42, 0.42, 0.95, 0.10),
    "barrier": (0.52, 2.45, 1.0, 0.05),
}

#: The box is this much larger than the shape on each side, so that range noise stays inside it.
BOX_MARGIN_M = 0.04
#: Boxes start this high above the ground, so that ground returns stay outside.
BOX_LIFT_M = 0.03

RIDER_HEIGHT_M = 0.5

_CAR_COLORS: tuple[Color, ...] = (
    (225, 225, 228), (170, 172, 176), (35, 36, 40), (90, 94, 100), (165, 30, 32), (30, 60, 130), (40, 95, 75),
    (196, 170, 120), (120, 66, 40), (214, 190, 60),
)  # fmt: skip
_TRUCK_COLORS: tuple[Color, ...] = ((230, 230, 232), (40, 80, 150), (170, 40, 35), (60, 110, 70), (120, 120, 126))
_TRAILER_COLORS: tuple[Color, ...] = ((214, 214, 210), (196, 198, 204), (150, 60, 45), (60, 90, 120))
_BUS_COLORS: tuple[Color, ...] = ((200, 30, 30), (30, 110, 170), (40, 140, 90), (235, 235, 225))
_CLOTHES: tuple[Color, ...] = (
    (40, 44, 60), (120, 30, 40), (60, 80, 120), (180, 170, 150), (30, 90, 70), (200, 120, 50), (90, 60, 110),
)  # fmt: skip
_SKIN: tuple[Color, ...] = ((224, 182, 150), (150, 104, 74), (196, 150, 116))
_TIRE: Color = (24, 24, 26)
_RIM: Color = (130, 132, 136)
_GLASS: Color = (44, 58, 72)
_RED_LIGHT: Color = (200, 20, 24)
_WHITE_LIGHT: Color = (250, 246, 220)
_ORANGE: Color = (240, 104, 22)
_YELLOW: Color = (236, 180, 24)


def sample_size(class_name: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Length, width and height in metres of a new object of the class (without a rider)."""
    length, width, height, spread = CLASS_SIZES_M[class_name]
    factor = 1.0 + spread * np.clip(rng.standard_normal(3), -2, 2)
    return float(length * factor[0]), float(width * (1 + (factor[1] - 1) / 2)), float(height * factor[2])


def build_shape(
    class_name: str,
    size: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    rider: bool = False,
    worker: bool = False,
) -> Shape:
    """The composite shape of one object.

    Args:
        class_name: one of CLASS_SIZES_M.
        size: length, width, height in metres of the annotated box (with the rider, if any).
        rng: draws colours and proportions.
        rider: a bicycle or motorcycle carries a person.
        worker: a pedestrian wears a safety vest and a helmet.
    """
    length, width = size[0] - 2 * BOX_MARGIN_M, size[1] - 2 * BOX_MARGIN_M
    height = BOX_LIFT_M + size[2] - BOX_MARGIN_M  # top of the shape above the ground
    builder = ShapeBuilder()
    if class_name in ("bicycle", "motorcycle"):
        _cycle(builder, class_name, (length, width, height), rng, rider)
    elif class_name == "pedestrian":
        _pedestrian(builder, (length, width, height), rng, worker)
    else:
        _BUILDERS[class_name](builder, (length, width, height), rng)
    return builder.build()


def _pick(colors: tuple[Color, ...], rng: np.random.Generator, spread: float = 14.0) -> Color:
    base = np.array(colors[int(rng.integers(len(colors)))]) + rng.normal(0, spread, 3)
    red, green, blue = np.clip(base, 8, 250)
    return float(red), float(green), float(blue)


def _scale(color: Color, factor: float) -> Color:
    red, green, blue = (min(255.0, channel * factor) for channel in color)
    return red, green, blue


def _wheel_decals(
    builder: ShapeBuilder, length: float, height: float, radius: float, places: tuple[float, ...]
) -> None:
    """Wheels painted on both flanks of the last box; `height` is that of the box."""
    du, dv = radius / length, radius / height
    for place in places:
        builder.decal("left right", (place - du, place + du), (-0.3 * dv, 1.7 * dv), _TIRE, round_=True)
        builder.decal("left right", (place - du / 2, place + du / 2), (0.2 * dv, 1.2 * dv), _RIM, round_=True)


def _lights(builder: ShapeBuilder, side: str, inset: float, extent: tuple[float, float, float], color: Color) -> None:
    """A pair of lamps, `inset` from each edge; `extent` is width, bottom and top; all as shares of the side."""
    width, low, high = extent
    builder.decal(side, (inset, inset + width), (low, high), color)
    builder.decal(side, (1 - inset - width, 1 - inset), (low, high), color)


def _car(builder: ShapeBuilder, size: tuple[float, float, float], rng: np.random.Generator) -> None:
    length, width, height = size
    color = _pick(_CAR_COLORS, rng)
    low, waist = 0.20, height * rng.uniform(0.52, 0.58)
    half_l, half_w = length / 2, width / 2
    shine = 0.12 + 0.4 * sum(color) / 765
    builder.box((-half_l, half_l), (-half_w, half_w), (low, waist), color, reflectivity=shine)
    builder.decal("front back left right", (0, 1), (0, 0.16), _scale(color, 0.35))
    _wheel_decals(builder, length, waist - low, 0.33, (0.19, 0.80))
    _lights(builder, "front", 0.03, (0.19, 0.55, 0.85), _WHITE_LIGHT)
    builder.decal("front", (0.28, 0.72), (0.3, 0.6), (30, 30, 34))
    _lights(builder, "back", 0.03, (0.17, 0.55, 0.9), _RED_LIGHT)
    builder.decal("back", (0.36, 0.64), (0.3, 0.5), (230, 230, 225))
    back = -half_l + length * rng.uniform(0.02, 0.2)  # hatchback to saloon
    cabin = (back, half_l - length * 0.26)
    inset = (length * 0.15, length * 0.08, width * 0.08)
    builder.box(cabin, (-half_w * 0.96, half_w * 0.96), (waist, height), color, top_inset=inset, reflectivity=0.12)
    builder.decal("front back", (0.06, 0.94), (0.1, 0.92), _GLASS)
    builder.decal("left right", (0.08, 0.5), (0.12, 0.88), _GLASS)
    builder.decal("left right", (0.55, 0.94), (0.12, 0.88), _GLASS)


def _truck(builder: ShapeBuilder, size: tuple[float, float, float], rng: np.random.Generator) -> None:
    length, width, height = size
    half_l, half_w = length / 2, width / 2
    cab_color, cargo_color = _pick(_TRUCK_COLORS, rng), _pick(_TRAILER_COLORS, rng)
    cab_length = min(2.3, 0.32 * length)
    cab_back, cab_top = half_l - cab_length, height * rng.uniform(0.78, 0.9)
    builder.box(
        (cab_back, half_l), (-half_w * 0.94, half_w * 0.94), (0.35, cab_top), cab_color,
        top_inset=(0.35, 0, 0.05), reflectivity=0.3,
    )  # fmt: skip
    _wheel_decals(builder, cab_length, cab_top - 0.35, 0.48, (0.55,))
    builder.decal("front", (0.08, 0.92), (0.5, 0.88), _GLASS)
    builder.decal("left right", (0.15, 0.75), (0.52, 0.86), _GLASS)
    _lights(builder, "front", 0.05, (0.17, 0.08, 0.2), _WHITE_LIGHT)
    builder.decal("front", (0.28, 0.72), (0.12, 0.4), (40, 40, 44))
    cargo = (-half_l, cab_back - 0.2)
    builder.box(cargo, (-half_w, half_w), (1.0, height), cargo_color, reflectivity=0.4)
    builder.decal("left right", (0.15, 0.85), (0.35, 0.65), _scale(cab_color, 0.9))
    builder.decal("back", (0.48, 0.52), (0.02, 0.98), _scale(cargo_color, 0.5))
    _lights(builder, "back", 0.0, (0.14, 0.0, 0.08), _RED_LIGHT)
    builder.box((cargo[0], cargo[1]), (-half_w * 0.5, half_w * 0.5), (0.7, 1.0), (46, 46, 50), reflectivity=0.1)
    rear = cargo[0] + 0.22 * (cargo[1] - cargo[0])
    builder.wheel(rear, 0.36, 0.33, (-half_w * 0.95, half_w * 0.95), _TIRE)


def _trailer(builder: ShapeBuilder, size: tuple[float, float, float], rng: np.random.Generator) -> None:
    length, width, height = size
    half_l, half_w = length / 2, width / 2
    color = _pick(_TRAILER_COLORS, rng)
    builder.box((-half_l, half_l), (-half_w, half_w), (1.15, height), color, reflectivity=0.45)
    for start in np.arange(0.06, 0.94, 0.11):  # corrugated flanks
        builder.decal("left right", (start, start + 0.03), (0.03, 0.97), _scale(color, 0.78))
    builder.decal("back", (0.49, 0.51), (0.02, 0.98), _scale(color, 0.45))
    _lights(builder, "back", 0.0, (0.12, 0.0, 0.06), _RED_LIGHT)
    builder.decal("left right", (0.0, 1.0), (0.0, 0.035), (210, 60, 40))
    for axle in (0.9, 2.0):
        builder.wheel(-half_l + axle, 0.56, 0.5, (-half_w * 0.94, half_w * 0.94), _TIRE)
    leg = half_l - 0.2 * length
    builder.box((leg - 0.15, leg + 0.15), (-half_w * 0.7, half_w * 0.7), (0.06, 1.15), (60, 60, 64), reflectivity=0.15)


def _bus(builder: ShapeBuilder, size: tuple[float, float, float], rng: np.random.Generator) -> None:
    length, width, height = size
    half_l, half_w = length / 2, width / 2
    color = _pick(_BUS_COLORS, rng)
    low = 0.28
    builder.box((-half_l, half_l), (-half_w, half_w), (low, height), color, reflectivity=0.3)
    builder.decal("left right", (0.02, 0.98), (0.42, 0.78), _GLASS)
    for start in np.arange(0.14, 0.95, 0.12):
        builder.decal("left right", (start, start + 0.012), (0.42, 0.78), _scale(color, 0.8))
    for door in ((0.05, 0.11), (0.5, 0.57)):
        builder.decal("right", door, (0.04, 0.78), _scale(_GLASS, 1.4))
    _wheel_decals(builder, length, height - low, 0.48, (0.2, 0.74))
    builder.decal("front", (0.05, 0.95), (0.32, 0.8), _GLASS)
    builder.decal("front", (0.15, 0.85), (0.85, 0.95), (250, 190, 40))
    _lights(builder, "front", 0.05, (0.15, 0.08, 0.16), _WHITE_LIGHT)
    builder.decal("back", (0.1, 0.9), (0.55, 0.82), _GLASS)
    _lights(builder, "back", 0.02, (0.1, 0.1, 0.3), _RED_LIGHT)


def _construction_vehicle(builder: ShapeBuilder, size: tuple[float, float, float], rng: np.random.Generator) -> None:
    length, width, height = size
    half_l, half_w = length / 2, width / 2
    color = _pick((_YELLOW, (232, 150, 30)), rng, 8)
    rear, front = -half_l, -half_l + 0.52 * length
    track = (rear + 0.05, front)
    for beside in ((-half_w, -half_w * 0.55), (half_w * 0.55, half_w)):
        builder.box(track, beside, (0.05, 0.85), (48, 46, 44), reflectivity=0.1)
        builder.decal("left right", (0.06, 0.94), (0.2, 0.8), (74, 70, 64))
    deck = height * rng.uniform(0.5, 0.56)
    builder.box((rear, front), (-half_w * 0.9, half_w * 0.9), (0.86, deck), color, reflectivity=0.45)
    builder.decal("back left right", (0.0, 1.0), (0.0, 0.2), (40, 38, 36))
    middle = (rear + front) / 2
    builder.box(
        (middle - 0.1, front),
        (half_w * 0.02, half_w * 0.85),
        (deck, height),
        color,
        top_inset=(0.2, 0, 0.06),
        reflectivity=0.25,
    )
    builder.decal("front back left right", (0.1, 0.9), (0.15, 0.88), _GLASS)
    # boom up and out to the front, stick down to the bucket
    reach = half_l - 0.35 - (front + 0.02)
    boom_angle = rng.uniform(0.5, 0.62)
    cos, sin = cos_sin_of(float(boom_angle))
    boom_length, rise = reach / cos, reach * (sin / cos)
    boom_low = min(deck, height - 0.5 - rise)
    lane = (-half_w * 0.45, -half_w * 0.1)
    builder.box(
        (front + 0.27, front + 0.27 + boom_length - 0.4),
        lane,
        (boom_low, boom_low + 0.4),
        color,
        pitch_rad=boom_angle,
        reflectivity=0.45,
    )
    builder.box(
        (half_l - 0.38, half_l - 0.04),
        lane,
        (0.72, boom_low + rise),
        _scale(color, 0.9),
        reflectivity=0.45,
    )
    builder.box(
        (half_l - 0.75, half_l),
        (-half_w * 0.75, half_w * 0.2),
        (0.06, 0.7),
        (70, 66, 60),
        top_inset=(0.0, 0.25, 0),
        reflectivity=0.2,
    )


def _cycle(
    builder: ShapeBuilder, class_name: str, size: tuple[float, float, float], rng: np.random.Generator, rider: bool
) -> None:
    length, width, height = size
    half_l, half_w = length / 2, width / 2
    top = height - RIDER_HEIGHT_M if rider else height
    heavy = class_name == "motorcycle"
    radius = 0.31 if heavy else 0.33
    tire = (-0.09, 0.09) if heavy else (-0.035, 0.035)
    color = _pick(_CAR_COLORS, rng)
    for x in (-half_l + radius, half_l - radius):
        builder.wheel(x, radius + 0.04, radius, tire, _TIRE)
    frame_low = 2 * radius + 0.05
    body = 0.2 if heavy else 0.05
    if heavy:
        builder.box(
            (-half_l + 2 * radius + 0.03, half_l - 2 * radius - 0.03),
            (-body, body),
            (0.15, frame_low),
            (70, 70, 76),
            reflectivity=0.35,
        )
        builder.box(
            (-half_l * 0.75, half_l * 0.5),
            (-body, body),
            (frame_low, top * 0.85),
            color,
            top_inset=(0.15, 0.1, 0.04),
            reflectivity=0.4,
        )
    else:
        builder.box(
            (-half_l + 2 * radius - 0.02, half_l - 2 * radius + 0.02),
            (-body, body),
            (0.28, frame_low),
            color,
            reflectivity=0.35,
        )
        builder.box((-half_l * 0.45, half_l * 0.3), (-body, body), (frame_low, top * 0.8), color, reflectivity=0.3)
    bar_low, stem = top - 0.12, (0.5 * half_w if heavy else 0.03)  # a motorcycle's stem is its fairing
    builder.box((half_l * 0.55, half_l * 0.7), (-stem, stem), (frame_low + 0.02, bar_low), color, reflectivity=0.3)
    builder.box((half_l * 0.55, half_l * 0.7), (-half_w, half_w), (bar_low, top), (40, 40, 44), reflectivity=0.3)
    if rider:
        _rider(builder, half_l, top * 0.85 + 0.01, height, rng)


def _rider(builder: ShapeBuilder, half_l: float, seat: float, height: float, rng: np.random.Generator) -> None:
    chest = height - 0.30
    torso = (-half_l * 0.4, half_l * 0.02)
    jacket = _pick(_CLOTHES, rng)
    builder.box(torso, (-0.2, 0.2), (seat, chest), jacket, top_inset=(-0.12, 0.12, 0), reflectivity=0.3)
    builder.prism((-half_l * 0.05, 0.0), (0.12, 0.11), (chest, height), _pick(_CAR_COLORS, rng), reflectivity=0.3)


def _pedestrian(
    builder: ShapeBuilder, size: tuple[float, float, float], rng: np.random.Generator, worker: bool
) -> None:
    length, width, height = size
    hip, neck = 0.48 * height, 0.83 * height
    trousers, jacket = _pick(_CLOTHES, rng), (255.0, 140.0, 20.0) if worker else _pick(_CLOTHES, rng, 24)
    stride, leg = length / 2, width * 0.22
    forward = rng.uniform(0.85, 1.0) * (stride - leg / 2)
    for side in (-1, 1):
        x, y = side * forward, side * width * 0.16
        builder.box((x - leg / 2, x + leg / 2), (y - leg / 2, y + leg / 2), (0.06, hip), trousers, reflectivity=0.25)
    builder.prism((0.0, 0.0), (width * 0.33, width * 0.39), (hip, neck), jacket, reflectivity=0.9 if worker else 0.3)
    if worker:
        builder.decal("front back left right", (0, 1), (0.35, 0.5), (235, 235, 180))
    builder.prism(
        (0.02, 0.0), (0.10, 0.115), (neck, height), _YELLOW if worker else _pick(_SKIN, rng), reflectivity=0.3
    )
    arm = width / 2 - width * 0.40
    for side in (-1, 1):
        inner, outer = side * (width / 2 - arm), side * width / 2
        sleeve = (min(inner, outer), max(inner, outer))
        builder.box(
            (-length * 0.2, length * 0.2), sleeve, (hip * 0.95, neck * 0.97), _scale(jacket, 0.85), reflectivity=0.3
        )


def _traffic_cone(builder: ShapeBuilder, size: tuple[float, float, float], rng: np.random.Generator) -> None:
    length, width, height = size
    builder.box(
        (-length / 2, length / 2), (-width / 2, width / 2), (BOX_LIFT_M + 0.01, 0.1), (40, 38, 38), reflectivity=0.15
    )
    color = _pick((_ORANGE,), rng, 8)
    wide, narrow = width * 0.42, width * 0.12
    levels = (0.1, 0.1 + 0.42 * (height - 0.1), 0.1 + 0.68 * (height - 0.1), height)
    radii = [wide + (narrow - wide) * (level - 0.1) / (height - 0.1) for level in levels]
    for index, (tone, shine) in enumerate(((color, 0.5), ((244.0, 244.0, 240.0), 1.0), (color, 0.5))):
        builder.prism(
            (0, 0), (radii[index], radii[index + 1]), (levels[index], levels[index + 1]), tone, reflectivity=shine
        )


def _barrier(builder: ShapeBuilder, size: tuple[float, float, float], rng: np.random.Generator) -> None:
    length, width, height = size
    half_l, half_w = length / 2, width / 2
    white = _pick(((232, 232, 228),), rng, 6)
    red = _pick(((205, 40, 30), (226, 92, 30)), rng, 8)
    builder.box(
        (-half_l, half_l),
        (-half_w, half_w),
        (BOX_LIFT_M + 0.01, 0.3),
        white,
        top_inset=(length * 0.3, length * 0.3, 0),
        reflectivity=0.5,
    )
    thin = length * 0.2
    builder.box((-thin, thin), (-half_w, half_w), (0.3, height), white, reflectivity=0.6)
    for start in np.arange(0.0, 0.99, 0.25):
        builder.decal("front back", (start, start + 0.125), (0.0, 1.0), red)


_BUILDERS: dict[str, Callable[[ShapeBuilder, tuple[float, float, float], np.random.Generator], None]] = {
    "car": _car,
    "truck": _truck,
    "trailer": _trailer,
    "bus": _bus,
    "construction_vehicle": _construction_vehicle,
    "traffic_cone": _traffic_cone,
    "barrier": _barrier,
}
