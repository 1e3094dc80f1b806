"""Point clouds and images: what is read, and what is said of files that are missing, cut short or wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.sensor_files import load_image, load_points


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.pcd.bin"
    np.array([[1.5, -2.0, 0.25, 17.0, 31.0], [4.0, 5.0, 6.0, 255.0, 2.0]], dtype=np.float32).tofile(path)
    return path


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    path = tmp_path / "front.jpg"
    assert cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    return path


def test_points_keep_position_and_intensity_and_lose_the_ring(cloud: Path) -> None:
    points = load_points(cloud)
    assert points.dtype == np.float32
    assert points.tolist() == [[1.5, -2.0, 0.25, 17.0, 0.0], [4.0, 5.0, 6.0, 255.0, 0.0]]


def test_truncated_cloud_is_named_with_both_sizes(cloud: Path) -> None:
    cloud.write_bytes(cloud.read_bytes()[:-3])
    with pytest.raises(DataError) as error:
        load_points(cloud)
    assert str(cloud) in str(error.value)
    assert "37 bytes" in str(error.value)
    assert "multiple of 20" in str(error.value)


def test_empty_and_missing_clouds(tmp_path: Path) -> None:
    empty = tmp_path / "empty.bin"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.bin is empty or truncated: 0 bytes"):
        load_points(empty)
    with pytest.raises(DataError, match=r"point cloud .*gone\.bin cannot be read: No such file"):
        load_points(tmp_path / "gone.bin")


def test_non_finite_points_are_counted(tmp_path: Path) -> None:
    points = np.zeros((5, 5), dtype=np.float32)
    points[1, 0], points[3, 3] = np.nan, np.inf
    points.tofile(tmp_path / "nan.bin")
    with pytest.raises(DataError, match=r"nan\.bin: 2 of 5 points"):
        load_points(tmp_path / "nan.bin")


def test_images_are_rgb_height_by_width(tmp_path: Path) -> None:
    image = np.zeros((3, 7, 3), dtype=np.uint8)
    image[1, 5] = (10, 20, 250)  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "dot.png"), image)
    loaded = load_image(tmp_path / "dot.png", (3, 7))
    assert loaded.shape == (3, 7, 3)
    assert loaded.dtype == np.uint8
    assert loaded[1, 5].tolist() == [250, 20, 10]
    assert loaded.sum() == 280


@pytest.mark.parametrize("kept", [0.95, 0.5, 0.05])
def test_truncated_jpeg_is_refused(jpeg: Path, kept: float) -> None:
    whole = jpeg.read_bytes()
    jpeg.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError) as error:
        load_image(jpeg)
    assert str(jpeg) in str(error.value)
    assert f"{int(len(whole) * kept)} bytes without a JPEG end marker" in str(error.value)


def test_bytes_after_the_jpeg_do_no_harm(jpeg: Path) -> None:
    expected = load_image(jpeg)
    jpeg.write_bytes(jpeg.read_bytes() + bytes(20))
    assert np.array_equal(load_image(jpeg), expected)


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.jpg cannot be decoded \({len(content)} bytes\)"):
        load_image(tmp_path / "x.jpg")


def test_missing_image_and_unexpected_size(jpeg: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image .*gone\.jpg cannot be read: No such file"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"front\.jpg is \(40, 60\) \(height, width\), its calibration says \(60, 40\)"):
        load_image(jpeg, (60, 40))
