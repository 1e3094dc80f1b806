"""Looking through a whole dataset once, and listing everything that is missing or broken."""

from __future__ import annotations

from pathlib import Path

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.mmdet3d_infos import broken_sensor_files, read_info_file
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_image, load_sample_points


def check_dataset(root: Path, infos: Path | None) -> list[str]:
    """Read every keyframe of a dataset, sensors included.

    Args:
        root: dataset folder.
        infos: an mmdet3d info file to check; absent, the `v1.0-*` tables under root are checked.

    Returns:
        One line per finding; empty for a sound dataset.
    """
    try:
        if infos is not None:
            return _check_infos(root, infos)
        samples = _samples(root)
    except DataError as error:
        return [str(error)]
    if not samples:
        return [f"{root} holds no samples"]
    return [finding for sample in samples for finding in _check_sample(sample)]


def _check_infos(root: Path, infos: Path) -> list[str]:
    findings = broken_sensor_files(infos, root, CAMERA_NAMES)
    if not findings:  # samples read sizes from the images, so they can be made of sound ones only
        read_info_file(infos, root, CAMERA_NAMES)
    return findings


def _samples(root: Path) -> list[Sample]:
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
        load_sample_points(sample)
    except DataError as error:
        findings.append(f"sample {sample.token}: {error}")
    for camera, path in sample.image_paths.items():
        try:
            load_image(path, sizes[camera])
        except DataError as error:
            findings.append(f"sample {sample.token}: {camera}: {error}")
    return findings
