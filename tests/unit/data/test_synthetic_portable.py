"""The same seed writes the same files on every machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.data.synthetic import portable
from bevkd_deploy.data.synthetic.dataset import GENERATOR_VERSION
from bevkd_deploy.data.synthetic.tables import rotation_quaternion
from bevkd_deploy.geometry.frames import invert, matrix_to_quaternion, quaternion_to_matrix

#: sha256 over the files of the world below, by kind. Files may only change together with GENERATOR_VERSION.
DIGESTS = {
    2: {
        "images": "982e57a7a2ee895299018b8935af42775cb38e8a8860cac61602569ebb188531",
        "LiDAR": "715dab3e88ee8fa473585ec0cd8043a092cf8e9293e1d309fb95e4b3e21359c9",
        "tables": "9a7c64b7476f760c190c7097583d6e058b4a5ade02494a4e76b69307c9d649bb",
    }
}

WRITE_WORLD = """
import hashlib, json, sys
from dataclasses import replace
from pathlib import Path
from bevkd_deploy.data.synthetic import PROFILES, write_dataset
profile = replace(PROFILES["tiny"], name="short", keyframes=2, sweeps_between=1)
root = write_dataset(Path(sys.argv[1]), profile=profile, difficulty=sys.argv[2], train_scenes=1, val_scenes=1, seed=3)
files = [path for path in sorted(root.rglob("*")) if path.is_file()]
print(json.dumps({str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}))
"""


def write_world(root: Path, difficulty: str = "normal", **environment: str) -> dict[str, str]:
    """Hash of every file, written by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WORLD, str(root), difficulty],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    digests: dict[str, str] = json.loads(done.stdout)
    assert len(digests) == 2 * (2 * 7 + 1) + 13 + 3  # sensors of two scenes, tables, map, splits and description
    return digests


def lesser_cpu() -> dict[str, str]:
    """Environment in which NumPy, OpenBLAS, OpenCV, the C library and libjpeg work as on an old CPU."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name)),
        "OPENBLAS_CORETYPE": "Prescott",
        "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX,SSE4.2,SSE4.1",
        "OPENCV_IPP": "disabled",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX512F,-FMA,-FMA4",
        "JSIMD_FORCENONE": "1",
    }


@pytest.mark.parametrize("difficulty", ["normal", "hard"])
def test_the_files_do_not_depend_on_the_cpu(tmp_path: Path, difficulty: str) -> None:
    ours = write_world(tmp_path / "ours", difficulty)
    old = write_world(tmp_path / "old", difficulty, **lesser_cpu())
    assert {name for name in ours if ours[name] != old[name]} == set()


def test_the_files_are_those_of_every_other_machine(tmp_path: Path) -> None:
    parts = {"images": hashlib.sha256(), "LiDAR": hashlib.sha256(), "tables": hashlib.sha256()}
    for name, digest in sorted(write_world(tmp_path / "world").items()):
        kind = "images" if name.endswith((".jpg", ".png")) else "LiDAR" if name.endswith(".bin") else "tables"
        parts[kind].update(f"{name} {digest}\n".encode())
    assert {kind: part.hexdigest() for kind, part in parts.items()} == DIGESTS[GENERATOR_VERSION]


def test_cosine_and_sine() -> None:
    angles = np.concatenate([np.random.default_rng(0).uniform(-500, 500, 20_000), np.arange(-8, 9) * np.pi / 4])
    cos, sin = portable.cos_sin(angles)
    assert np.abs(cos - np.cos(angles)).max() < 2e-15
    assert np.abs(sin - np.sin(angles)).max() < 2e-15
    assert [portable.cos_sin_of(float(angle)) for angle in angles] == list(zip(cos.tolist(), sin.tolist(), strict=True))


def test_exponential() -> None:
    values = np.random.default_rng(0).uniform(-40, 20, 20_000)
    assert np.abs(portable.exp(values) / np.exp(values) - 1).max() < 1e-15
    assert portable.exp(0.0) == 1.0


def test_linear_interpolation() -> None:
    values = np.array([1.0, 3.0, 2.0, 2.5])
    where = np.array([-4.0, 10.0, 10.25, 11.0, 11.4, 99.0])
    expected = np.interp(where, [10.0, 10.5, 11.0, 11.5], values)
    assert portable.interpolate(where, 10.0, 0.5, values) == pytest.approx(expected, abs=1e-12)


def test_matrices() -> None:
    rng = np.random.default_rng(1)
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_to_matrix(rng.normal(size=4))
    matrix[:3, 3] = rng.normal(size=3)
    points = rng.normal(size=(5, 2, 3))
    assert portable.transform(matrix, points) == pytest.approx(points @ matrix[:3, :3].T + matrix[:3, 3], abs=1e-12)
    assert portable.invert_rigid(matrix) == pytest.approx(invert(matrix), abs=1e-12)
    other = quaternion_to_matrix(rng.normal(size=4))
    assert portable.product(matrix[:3, :3], other) == pytest.approx(matrix[:3, :3] @ other, abs=1e-12)
    assert portable.turn_z(0.3) == pytest.approx(quaternion_to_matrix((np.cos(0.15), 0, 0, np.sin(0.15))), abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_quaternion_of_a_rotation(seed: int) -> None:
    # the largest component decides the formula: every one of the four comes up
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=4) * 0.2
    quaternion[seed % 4] = (-1) ** (seed // 4) * 2.0
    rotation = quaternion_to_matrix(quaternion)
    assert rotation_quaternion(rotation) == pytest.approx(matrix_to_quaternion(rotation), abs=1e-12)


def test_random_numbers_are_numpys_to_the_last_bits() -> None:
    (ours,) = portable.generators([1, 2], 1)
    (stream,) = np.random.SeedSequence([1, 2]).spawn(1)
    numpys = np.random.default_rng(stream)
    assert ours.uniform(-3, 5, 1000) == pytest.approx(numpys.uniform(-3, 5, 1000), abs=1e-12)
    assert ours.normal(2, 3, 1000) == pytest.approx(numpys.normal(2, 3, 1000), abs=1e-6)
    steps = ours.standard_normal(1000) * 2**24
    assert (steps == np.round(steps)).all()
    with pytest.raises(TypeError, match="new float64 numbers only"):
        ours.standard_normal(3, dtype=np.float32)
