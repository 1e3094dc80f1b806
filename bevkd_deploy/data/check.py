"""Looking through a whole dataset once, and listing everything that is missing or broken."""

from __future__ import annotations

from pathlib import Path

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.mmdet3d_infos import read_infos
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_image, load_points


def check_dataset(root: Path, infos: Path | None) -> list[str]:
    """Read every keyframe of a dataset, sensors included.

    Args:
        root: dataset folder.
        infos: an mmdet3d info file to check; absent, the `v1.0-*` tables under root are checked.

    Returns:
        One line per finding; empty for a sound dataset.
    """
    findings: list[str] = []
    try:
        samples = _samples(root, infos)
    except DataError as error:
        return [str(error)]
    if not samples:
        findings.append(f"{root} holds no samples")
    for sample in samples:
        findings += _check_sample(sample)
    return findings


def _samples(root: Path, infos: Path | None) -> list[Sample]:
    if infos is not None:
        return read_infos(root, str(infos.resolve().relative_to(root.resolve())), CAMERA_NAMES)
    versions = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    if not versions:
        raise DataError(
            f"{root} is not a nuScenes root: it has no v1.0-* folder of tables. For mmdet3d info files add --infos FILE"
        )
    samples: list[Sample] = []
    for version in versions:
        tables = NuScenesTables(root, version)
        samples += tables.samples(set(tables.scene_names()), CAMERA_NAMES)
    return samples


def _check_sample(sample: Sample) -> list[str]:
    findings: list[str] = []
    sizes = dict(zip(sample.calibration.cameras, sample.calibration.image_sizes_px, strict=True))
    try:
        load_points(sample.points_path)
    except DataError as error:
        findings.append(f"sample {sample.token}: {error}")
    for camera, path in sample.image_paths.items():
        try:
            load_image(path, sizes[camera])
        except DataError as error:
            findings.append(f"sample {sample.token}: {camera}: {error}")
    return findings
