"""One colour per actor in every picture and plot; the palette of Okabe and Ito, readable for colour-blind eyes."""

from __future__ import annotations

ACTOR_COLORS: dict[str, str] = {
    "truth": "#009e73",
    "teacher": "#e69f00",
    "student": "#0a84d6",
    "engine": "#cc5f9b",
}

#: Brighter variants, for lines over photographs.
PHOTO_COLORS: dict[str, str] = {
    "truth": "#35e08a",
    "teacher": "#ffb52e",
    "student": "#38b6ff",
}


def rgb(color: str) -> tuple[int, int, int]:
    """`#rrggbb` as 0..255 red, green, blue."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
