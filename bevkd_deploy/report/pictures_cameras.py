"""The cameras of one frame as a mosaic, with boxes projected into each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.contracts.files import write_atomic
from bevkd_deploy.report import wireframe
from bevkd_deploy.report.frame_view import ACTORS, FrameBox, FrameView, box_array
from bevkd_deploy.report.palette import PHOTO_COLORS, rgb

#: Reading order of the mosaic: what is left in the world is left in the picture.
MOSAIC_ORDER: tuple[str, ...] = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
MOSAIC_COLUMNS = 3
TILE_WIDTH_PX = 480
GAP_PX = 4
CAPTION_PX = 26
BACKGROUND = (24, 26, 31)
RIM = (12, 14, 18)

#: A label is written where the projected box is at least this high.
LABEL_MIN_HEIGHT_PX = 24

#: Labels keep clear of the camera's name.
LABEL_TOP_PX = 30

#: Room kept free around a label, width and height.
LABEL_PX = (110, 13)

Image = NDArray[np.uint8]


def draw_cameras(frame_view: FrameView, path: Path | str, who: str = "student", min_score: float = 0.25) -> Path:
    """Draw all cameras with the boxes of `who` and of the truth.

    Tiles are `TILE_WIDTH_PX` wide under a caption line of `CAPTION_PX`, `GAP_PX` apart, in the order
    `MOSAIC_ORDER`; further cameras follow in their own order.

    Args:
        frame_view: the frame.
        path: PNG file to write.
        who: "student" or "teacher"; "truth" draws the truth alone.
        min_score: boxes below this score are left out.

    Raises:
        UsageError: `who` is none of the three.
        DataError: an image is missing, unreadable or not of its declared size.
    """
    import cv2

    if who not in ACTORS:
        raise UsageError(f"who must be one of {list(ACTORS)}, got '{who}'")
    cameras = sorted(frame_view.images, key=_mosaic_rank)
    actors = ["truth"] if who == "truth" else ["truth", who]
    tiles = [_draw_tile(frame_view, camera, actors, min_score) for camera in cameras]
    mosaic = _assemble(tiles)
    _draw_caption(mosaic, frame_view, actors, min_score)
    bgr = np.ascontiguousarray(mosaic[:, :, ::-1])

    def write(file: Path) -> None:
        if not cv2.imwrite(str(file), bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
            raise DataError(f"the picture could not be written: {path}")

    return write_atomic(path, write)


def _mosaic_rank(camera: str) -> int:
    return MOSAIC_ORDER.index(camera) if camera in MOSAIC_ORDER else len(MOSAIC_ORDER)


def _draw_tile(frame_view: FrameView, camera: str, actors: list[str], min_score: float) -> Image:
    import cv2

    image = _read_image(frame_view.images[camera], frame_view.image_size_px[camera])
    scale = TILE_WIDTH_PX / image.shape[1]
    size = (TILE_WIDTH_PX, round(image.shape[0] * scale))
    shrinks = scale < 1
    tile = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8)
    lidar2tile = np.diag([scale, scale, 1.0, 1.0]) @ np.array(frame_view.lidar2img[camera], dtype=np.float64)
    for actor in actors:
        _draw_boxes(tile, frame_view.shown(actor, min_score), lidar2tile, actor)
    _write_text(tile, camera, (8, 18), (255, 255, 255))
    return tile


def _read_image(path: Path, size_px: tuple[int, int]) -> Image:
    import cv2

    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if bgr is None:
        raise DataError(f"image is missing or cannot be decoded: {path}")
    height, width = bgr.shape[:2]
    if (height, width) != tuple(size_px):
        raise DataError(f"image {path} is {height} x {width} (h x w), expected {size_px[0]} x {size_px[1]}")
    return np.asarray(bgr[:, :, ::-1], dtype=np.uint8)


def _draw_boxes(tile: Image, boxes: list[FrameBox], lidar2tile: NDArray[np.float64], actor: str) -> None:
    lines, visible = wireframe.project_segments(wireframe.segments(box_array(boxes)), lidar2tile)
    color = rgb(PHOTO_COLORS[actor])
    drawn = [part for line in lines[visible] if (part := _clip(line, tile.shape)) is not None]
    # A dark rim under the lines keeps them readable on bright ground; all rims come first, so that none hides a line.
    for width, shade in ((3, RIM), (1, color)):
        for part in drawn:
            _draw_line(tile, part, shade, width)
    taken: list[tuple[int, int]] = []
    for index in np.flatnonzero(visible.all(axis=1)):
        if boxes[index].score is not None:
            _label(tile, f"{boxes[index].label} {boxes[index].score:.2f}", lines[index].reshape(-1, 2), color, taken)


def _clip(line: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Part of a 2-D segment inside the picture (Liang and Barsky 1984), or None."""
    start, stop = line
    delta = stop - start
    low, high = 0.0, 1.0
    for axis, limit in ((0, shape[1] - 1), (1, shape[0] - 1)):
        for p, q in ((-delta[axis], start[axis]), (delta[axis], limit - start[axis])):
            if p == 0 and q < 0:
                return None
            if p < 0:
                low = max(low, q / p)
            elif p > 0:
                high = min(high, q / p)
    return (start + low * delta, start + high * delta) if low <= high else None


def _draw_line(
    tile: Image, part: tuple[NDArray[np.float64], NDArray[np.float64]], color: tuple[int, int, int], width: int
) -> None:
    import cv2

    (a, b), (c, d) = part[0].round().astype(int).tolist(), part[1].round().astype(int).tolist()
    cv2.line(tile, (a, b), (c, d), color, width, cv2.LINE_AA)


def _label(
    tile: Image,
    words: str,
    pixels: NDArray[np.float64],
    color: tuple[int, int, int],
    taken: list[tuple[int, int]],
) -> None:
    """Write at the highest corner in the picture of a box that is high enough, unless another label stands there."""
    limit = (tile.shape[1] - LABEL_PX[0], tile.shape[0])
    corners = pixels[(pixels >= (0, LABEL_TOP_PX)).all(axis=1) & (pixels < limit).all(axis=1)]
    if not len(corners):
        return
    left, top = (int(value) for value in corners[corners[:, 1].argmin()])
    height = pixels[:, 1].max() - top
    free = all(abs(left - x) >= LABEL_PX[0] or abs(top - y) >= LABEL_PX[1] for x, y in taken)
    if height >= LABEL_MIN_HEIGHT_PX and free:
        taken.append((left, top))
        _write_text(tile, words, (left, top - 4), color, 0.38)


def _write_text(
    image: Image, words: str, place: tuple[int, int], color: tuple[int, int, int], size: float = 0.45
) -> None:
    import cv2

    # The rim is the same thin text, moved: a thicker one is also wider in some OpenCV versions.
    x, y = place
    for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        cv2.putText(image, words, (x + dx, y + dy), cv2.FONT_HERSHEY_SIMPLEX, size, RIM, 1, cv2.LINE_AA)
    cv2.putText(image, words, place, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)


def _assemble(tiles: list[Image]) -> Image:
    rows = [tiles[start : start + MOSAIC_COLUMNS] for start in range(0, len(tiles), MOSAIC_COLUMNS)]
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    columns = min(MOSAIC_COLUMNS, len(tiles))
    width = columns * (TILE_WIDTH_PX + GAP_PX) - GAP_PX
    mosaic = np.empty((CAPTION_PX + sum(heights) + GAP_PX * (len(rows) - 1), width, 3), np.uint8)
    mosaic[:] = BACKGROUND
    y = CAPTION_PX
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            x = column * (TILE_WIDTH_PX + GAP_PX)
            mosaic[y : y + tile.shape[0], x : x + TILE_WIDTH_PX] = tile
        y += height + GAP_PX
    return mosaic


def _draw_caption(mosaic: Image, frame_view: FrameView, actors: list[str], min_score: float) -> None:
    x = 8
    for actor in actors:
        words = f"{actor} ({len(frame_view.shown(actor, min_score))} boxes)"
        mosaic[8:18, x : x + 18] = rgb(PHOTO_COLORS[actor])
        _write_text(mosaic, words, (x + 24, 18), (235, 235, 235))
        x += 40 + 9 * len(words)
    _write_text(mosaic, f"score >= {min_score:g}   frame {frame_view.token}", (x, 18), (160, 165, 175))
