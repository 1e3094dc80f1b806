"""Frames as PNG files: a bird's-eye view and the cameras, with the boxes of truth, teacher and student."""

from __future__ import annotations

from pathlib import Path

from bevkd_deploy.report.frame_view import FrameView
from bevkd_deploy.report.pictures_bev import draw_bev
from bevkd_deploy.report.pictures_cameras import draw_cameras

__all__ = ["draw_bev", "draw_cameras", "draw_frame"]


def draw_frame(frame_view: FrameView, folder: Path | str, min_score: float = 0.25) -> tuple[Path, ...]:
    """Draw both pictures of a frame: `<token>.bev.png` and `<token>.cameras.png` (student and truth).

    Args:
        frame_view: the frame.
        folder: where the files go; made if missing.
        min_score: boxes of teacher and student below this score are left out.

    Returns:
        The two files; the bird's-eye view alone where the frame has no camera.

    Raises:
        DataError: a sensor file cannot be read or does not have the declared size.
    """
    folder = Path(folder)
    bev = draw_bev(frame_view, folder / f"{frame_view.token}.bev.png", min_score)
    if not frame_view.images:
        return (bev,)
    cameras = draw_cameras(frame_view, folder / f"{frame_view.token}.cameras.png", min_score=min_score)
    return bev, cameras
