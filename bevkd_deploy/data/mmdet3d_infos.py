"""mmdet3d info files (info_version 1.1) as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bevkd_deploy.contracts.classes import CLASS_NAMES, LIDAR_NAME, attribute_for
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.safe_pickle import load_pickle
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_image, load_points
from bevkd_deploy.geometry.calibration import Calibration


def read_infos(root: Path, infos: str, cameras: tuple[str, ...]) -> list[Sample]:
    """Samples of one info file.

    Args:
        root: dataset folder; sensor files lie in it, or in its samples/<SENSOR>/ folders.
        infos: the .pkl file, relative to root; '*' patterns are allowed when exactly one file matches.
        cameras: cameras to read, in this order.

    Raises:
        DataError: root or file is missing, or the content is not an info file of version 1.1.
    """
    return read_info_file(_find_infos(root, infos), root, cameras)


def read_info_file(path: Path, root: Path, cameras: tuple[str, ...]) -> list[Sample]:
    """As `read_infos`, of the info file at `path`, which may lie anywhere."""
    content = _load(path)
    categories = content["metainfo"]["categories"]
    labels = {index: CLASS_NAMES.index(name) for name, index in categories.items() if name in CLASS_NAMES}
    sizes: dict[str, tuple[int, int]] = {}
    return [_sample(root, info, cameras, labels, sizes) for info in content["data_list"]]


def broken_sensor_files(path: Path, root: Path, cameras: tuple[str, ...]) -> list[str]:
    """Read every sensor file that an info file names; one line per missing, damaged or odd-sized one."""
    findings: list[str] = []
    sizes: dict[str, tuple[int, int]] = {}
    for info in _load(path)["data_list"]:
        names = {name: image["img_path"] for name, image in info["images"].items() if name in cameras}
        try:
            load_points(_locate(root, info["lidar_points"]["lidar_path"], LIDAR_NAME))
        except DataError as error:
            findings.append(f"sample {info['token']}: {error}")
        for name, file in names.items():
            try:
                height, width = load_image(_locate(root, file, name), sizes.get(name)).shape[:2]
                sizes.setdefault(name, (height, width))
            except DataError as error:
                findings.append(f"sample {info['token']}: {name}: {error}")
    return findings


def _load(path: Path) -> dict[str, Any]:
    content = load_pickle(path)
    version = content.get("metainfo", {}).get("info_version") if isinstance(content, dict) else None
    if version != "1.1" or not content.get("data_list"):
        raise DataError(
            f"{path} is no mmdet3d info file: expected a dict with metainfo.info_version '1.1' and a data_list, "
            f"got version {version!r}. Convert older files with mmdet3d's update_infos_to_v2.py"
        )
    return content


def _find_infos(root: Path, infos: str) -> Path:
    if not root.is_dir():
        raise DataError(f"data root {root} is not a folder; set data.root to the dataset's folder")
    matches = sorted(root.glob(infos))
    if len(matches) != 1:
        raise DataError(f"expected one file {infos} in {root}, found {[m.name for m in matches] or 'none'}")
    return matches[0]


def _sample(
    root: Path,
    info: dict[str, Any],
    cameras: tuple[str, ...],
    labels: dict[int, int],
    sizes: dict[str, tuple[int, int]],
) -> Sample:
    token = str(info["token"])
    missing = [name for name in cameras if name not in info["images"]]
    if missing:
        raise DataError(f"sample {token} lacks cameras {missing}; it has {sorted(info['images'])}")
    images = {name: info["images"][name] for name in cameras}
    paths = {name: _locate(root, image["img_path"], name) for name, image in images.items()}
    for name, path in paths.items():  # infos carry no image size; one camera has one size
        if name not in sizes:
            height, width = load_image(path).shape[:2]
            sizes[name] = (height, width)
    lidar = info["lidar_points"]
    objects = [o for o in info.get("instances", []) if int(o["bbox_label_3d"]) in labels]
    boxes = np.full((len(objects), 9), np.nan)
    for row, instance in enumerate(objects):
        boxes[row, :7] = instance["bbox_3d"]
        boxes[row, 7:9] = instance.get("velocity", (np.nan, np.nan))
    kept = np.array([labels[int(o["bbox_label_3d"])] for o in objects], dtype=np.int64)
    counts = [int(o.get("num_lidar_pts", 1)) + int(o.get("num_radar_pts", 0)) for o in objects]
    speeds = np.nan_to_num(np.hypot(boxes[:, 7], boxes[:, 8]))
    return Sample(
        token=token,
        scene=Path(lidar["lidar_path"]).name.split("__")[0],
        timestamp_s=float(info["timestamp"]),
        image_paths=paths,
        points_path=_locate(root, lidar["lidar_path"], LIDAR_NAME),
        calibration=Calibration(
            cameras,
            np.stack([np.asarray(image["cam2img"], dtype=np.float64)[:3, :3] for image in images.values()]),
            np.stack([np.asarray(image["lidar2cam"], dtype=np.float64) for image in images.values()]),
            tuple(sizes[name] for name in cameras),
        ),
        lidar2ego=np.asarray(lidar["lidar2ego"], dtype=np.float64),
        ego2global=np.asarray(info["ego2global"], dtype=np.float64),
        boxes=boxes,
        labels=kept,
        num_points=np.array(counts, dtype=np.int64),
        # Info files carry no attributes; the speed rule is what detections are given too.
        attributes=tuple(attribute_for(CLASS_NAMES[k], float(s)) for k, s in zip(kept, speeds, strict=True)),
    )


def _locate(root: Path, name: str, sensor: str) -> Path:
    candidates = [root / name, root / "samples" / sensor / name]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(f"{sensor} file not found; tried {' and '.join(map(str, candidates))}")
