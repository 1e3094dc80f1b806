"""What samples need of the nuScenes tables, as arrays: built from the tables once, kept as one .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.files import write_atomic

#: Rises when the arrays or their meaning change: files of another version are made again.
INDEX_VERSION = 1

#: `box_label` of a bike rack, which is no detection class.
BIKE_RACK = -1


class Texts(Sequence[str]):
    """Many strings as one block of UTF-8 and their boundaries."""

    def __init__(self, block: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Pack strings."""
        encoded = [text.encode("utf-8", errors="surrogatepass") for text in texts]
        ends = np.cumsum([0, *(len(text) for text in encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        row = row + len(self) if row < 0 else row
        start, end = self.ends[row], self.ends[row + 1]
        return self.block[start:end].tobytes().decode("utf-8", errors="surrogatepass")


@dataclass(frozen=True, eq=False)
class TableIndex:
    """Columns of S samples, K calibrated sensors, D sensor files and A boxes; a row number of -1 means none.

    Samples are ordered by scene name and time; boxes by sample, then as in the table. Sensor files are those of
    keyframes and every turn of the LiDAR. Poses are [x, y, z, qw, qx, qy, qz], as the tables have them.

    Attributes:
        sample_token: S texts.
        sample_scene: S scene names.
        sample_time_us: int64 [S].
        channels: names of the C channels.
        keyframes: int32 [S, C], the row of each channel's keyframe among the sensor files.
        sensor_channel: int32 [K].
        sensor2ego: float64 [K, 7].
        cam2img: float64 [K, 3, 3], NaN for sensors that are no camera.
        file_token, file_name: D texts; names are relative to the dataset folder.
        file_time_us: int64 [D].
        file_sensor: int32 [D], row among the calibrated sensors.
        ego2global: float64 [D, 7].
        image_hw_px: int32 [D, 2].
        previous: int32 [D], the turn before a LiDAR turn.
        box_start: int64 [S + 1]; the boxes of sample s are rows box_start[s]:box_start[s + 1].
        box_label: int8 [A], index into CLASS_NAMES, or BIKE_RACK.
        box_attribute: int16 [A], row of `attributes`.
        attributes: attribute names.
        box_translation, box_size, box_rotation, box_velocity: float64 [A, 3], [A, 3] (w, l, h), [A, 4], [A, 2].
        box_points: int32 [A, 2], LiDAR and radar points inside.
    """

    sample_token: Texts
    sample_scene: Texts
    sample_time_us: NDArray[np.int64]
    channels: Texts
    keyframes: NDArray[np.int32]
    sensor_channel: NDArray[np.int32]
    sensor2ego: NDArray[np.float64]
    cam2img: NDArray[np.float64]
    file_token: Texts
    file_name: Texts
    file_time_us: NDArray[np.int64]
    file_sensor: NDArray[np.int32]
    ego2global: NDArray[np.float64]
    image_hw_px: NDArray[np.int32]
    previous: NDArray[np.int32]
    box_start: NDArray[np.int64]
    box_label: NDArray[np.int8]
    box_attribute: NDArray[np.int16]
    attributes: Texts
    box_translation: NDArray[np.float64]
    box_size: NDArray[np.float64]
    box_rotation: NDArray[np.float64]
    box_velocity: NDArray[np.float64]
    box_points: NDArray[np.int32]

    def save(self, path: Path, key: str) -> None:
        """Write atomically: a reader, or another process that writes the same, sees a whole file or none."""
        arrays: dict[str, NDArray[Any]] = {"version": np.array(INDEX_VERSION), "key": _text_array(key)}
        for name, value in _columns(self):
            if isinstance(value, Texts):
                arrays[f"{name}.block"], arrays[f"{name}.ends"] = value.block, value.ends
            else:
                arrays[name] = value

        def write(temporary: Path) -> None:
            with temporary.open("wb") as handle:
                np.savez(handle, **arrays)  # type: ignore[arg-type]  # numpy types the flag allow_pickle there

        write_atomic(path, write)

    @classmethod
    def load(cls, path: Path, key: str) -> TableIndex:
        """Read what `save` wrote.

        Raises:
            DataError: the file is damaged, of another version, or of other tables.
        """
        try:
            # Opened here: numpy leaves a file that it cannot read open.
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
                if int(stored["version"]) != INDEX_VERSION or stored["key"].tobytes() != key.encode():
                    raise DataError(f"index {path} is of another version or of other tables")
                columns: dict[str, Any] = {}
                for field in fields(cls):
                    if field.name in stored:
                        columns[field.name] = stored[field.name]
                    else:
                        columns[field.name] = Texts(stored[f"{field.name}.block"], stored[f"{field.name}.ends"])
            index = cls(**columns)
            index._check()
        # numpy and zipfile raise these, and only these, on files cut, altered or replaced by something else.
        except (OSError, ValueError, KeyError, IndexError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"index {path} is damaged: {error}") from error
        return index

    def _check(self) -> None:
        """ValueError where lengths do not agree; the content is guarded by the file's checksums."""
        samples, files, boxes = len(self.sample_token), len(self.file_token), len(self.box_label)
        lengths = {
            samples: (self.sample_scene, self.sample_time_us, self.keyframes, self.box_start[1:]),
            files: (self.file_name, self.file_time_us, self.file_sensor, self.ego2global, self.previous),
            boxes: (self.box_attribute, self.box_translation, self.box_rotation, self.box_velocity, self.box_points),
        }
        for length, columns in lengths.items():
            if any(len(column) != length for column in columns):
                raise ValueError(f"columns of {length} rows have {[len(column) for column in columns]}")


def _columns(index: TableIndex) -> list[tuple[str, Any]]:
    return [(field.name, getattr(index, field.name)) for field in fields(index)]


def _text_array(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)
