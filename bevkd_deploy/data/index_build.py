"""From the nuScenes tables to their index, one table at a time.

Source of the velocity rule: nuscenes-devkit 1.2.0, NuScenes.box_velocity (central difference, at most 1.5 s).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import BIKE_RACK_CATEGORY, CATEGORY_TO_CLASS, CLASS_NAMES, LIDAR_NAME
from bevkd_deploy.contracts.files import sha256_json
from bevkd_deploy.data.table_index import BIKE_RACK, INDEX_VERSION, TableIndex, Texts
from bevkd_deploy.data.table_rows import Report, Row, TableRows

#: The tables that are read, and the fields of theirs that are.
TABLES: dict[str, tuple[str, ...]] = {
    "scene": ("name",),
    "sample": ("scene_token", "timestamp"),
    "sensor": ("channel",),
    "calibrated_sensor": ("sensor_token", "translation", "rotation", "camera_intrinsic"),
    "category": ("name",),
    "instance": ("category_token",),
    "attribute": ("name",),
    "sample_data": (
        "sample_token", "ego_pose_token", "calibrated_sensor_token", "timestamp", "is_key_frame", "height", "width",
        "filename", "prev",
    ),
    "ego_pose": ("translation", "rotation"),
    "sample_annotation": (
        "sample_token", "instance_token", "attribute_tokens", "translation", "size", "rotation", "prev", "next",
        "num_lidar_pts", "num_radar_pts",
    ),
}  # fmt: skip

_MAX_VELOCITY_SPAN_S = 1.5


def tables_key(digests: dict[str, str]) -> str:
    """The name of an index: a hash over the tables' contents and the version of the index."""
    return sha256_json({"index_version": INDEX_VERSION, "tables": digests})


class IndexBuilder:
    """Reads the tables of one folder into an index.

    Args:
        folder: the `v1.0-*` folder.
        report: told of each problem; `fail` of table_rows stops at the first, a collector finds all of them.
        on_bytes: told the number of bytes of each block that was read.
    """

    def __init__(self, folder: Path, report: Report, on_bytes: Callable[[int], None] | None = None) -> None:
        self._folder, self._report, self._on_bytes = folder, report, on_bytes
        self._digests: dict[str, str] = {}
        # Nobody is told of tokens that lead to a row, or a table, that was reported itself.
        self._broken: set[str] = set()
        self._skipped: set[str] = set()
        self._columns: dict[str, Any] = {}

    def build(self) -> tuple[TableIndex, str]:
        """The index and its key, which is made of the very bytes that were read."""
        samples = self._read_samples()
        sensors = self._read_sensors()
        self._read_files(samples, sensors)
        self._read_boxes(samples)
        return TableIndex(**self._columns), tables_key(self._digests)

    def _rows(self, table: str) -> Iterator[Row]:
        rows = TableRows(self._folder / f"{table}.json", TABLES[table], self._report, self._on_bytes)
        yield from rows
        self._digests[table] = rows.sha256
        self._skipped |= rows.rejected
        if not rows.complete:
            self._broken.add(table)

    def _find(self, rows: dict[str, int], table: str, token: object, where: str) -> int:
        """Row of a token in a table that was read, -1 (and a report) where it has none."""
        token = token if isinstance(token, str) else repr(token)
        found = rows.get(token, -1)
        if found < 0 and table not in self._broken and token not in self._skipped:
            root = self._folder.parent
            self._report("token", f"dangling token: {table}.json in {root} has no row {token!r}, named by {where}")
        return found

    def _read_samples(self) -> dict[str, int]:
        """Samples by scene name and time; returns the row of each token."""
        scenes = {row["token"]: self._text(row, "name", "scene") for row in self._rows("scene")}
        numbers = {token: number for number, token in enumerate(scenes)}
        found: list[tuple[str, int, str]] = []
        for row in self._rows("sample"):
            time_us = self._integer(row, "timestamp", "sample")
            if self._find(numbers, "scene", row["scene_token"], f"sample {row['token']}") >= 0:
                found.append((scenes[row["scene_token"]], time_us, row["token"]))
            else:
                self._skipped.add(row["token"])
        found.sort(key=lambda sample: sample[:2])
        self._columns["sample_scene"] = Texts.of(scene for scene, _, _ in found)
        self._columns["sample_time_us"] = np.array([time_us for _, time_us, _ in found], dtype=np.int64)
        self._columns["sample_token"] = Texts.of(token for _, _, token in found)
        return {token: number for number, (_, _, token) in enumerate(found)}

    def _read_sensors(self) -> dict[str, int]:
        """Calibrated sensors; returns the row of each token."""
        channels: list[str] = []
        channel_of: dict[str, int] = {}
        for row in self._rows("sensor"):
            name = self._text(row, "channel", "sensor")
            if name not in channels:
                channels.append(name)
            channel_of[row["token"]] = channels.index(name)
        rows: dict[str, int] = {}
        numbers: list[int] = []
        pose, intrinsics = array("d"), array("d")
        for row in self._rows("calibrated_sensor"):
            channel = self._find(channel_of, "sensor", row["sensor_token"], f"calibrated_sensor {row['token']}")
            rows[row["token"]] = len(numbers)
            numbers.append(channel)
            self._append(pose, row, "translation", 3, "calibrated_sensor")
            self._append(pose, row, "rotation", 4, "calibrated_sensor")
            matrix = row["camera_intrinsic"]
            intrinsics.extend(
                self._numbers(row, "camera_intrinsic", 9, "calibrated_sensor") if matrix else [np.nan] * 9
            )
        self._columns["channels"] = Texts.of(channels)
        self._columns["sensor_channel"] = np.array(numbers, dtype=np.int32)
        self._columns["sensor2ego"] = _matrix(pose, 7)
        self._columns["cam2img"] = _matrix(intrinsics, 9).reshape(-1, 3, 3)
        return rows

    def _read_files(self, samples: dict[str, int], sensors: dict[str, int]) -> None:
        """Sensor files of keyframes, and all of the LiDAR, with their ego poses."""
        channels = list(self._columns["channels"])
        channel_of_sensor = self._columns["sensor_channel"].tolist()
        lidar = channels.index(LIDAR_NAME) if LIDAR_NAME in channels else -1
        keyframes = np.full((len(samples), len(channels)), -1, dtype=np.int32)
        tokens: dict[str, int] = {}
        poses_wanted: dict[str, list[int]] = {}
        own: list[str] = []
        before: list[str] = []
        names: list[str] = []
        integers = array("q")
        for row in self._rows("sample_data"):
            where = f"sample_data {row['token']}"
            sensor = self._find(sensors, "calibrated_sensor", row["calibrated_sensor_token"], where)
            channel = channel_of_sensor[sensor] if sensor >= 0 else -1
            if channel < 0:
                self._skipped.add(row["token"])
            if channel < 0 or not (row["is_key_frame"] or channel == lidar):
                continue
            if row["is_key_frame"]:
                sample = self._find(samples, "sample", row["sample_token"], where)
                if sample >= 0:
                    keyframes[sample, channel] = len(names)
            tokens[row["token"]] = len(names)
            poses_wanted.setdefault(self._text(row, "ego_pose_token", "sample_data"), []).append(len(names))
            own.append(row["token"])
            before.append(row["prev"] if channel == lidar else "")
            names.append(self._text(row, "filename", "sample_data"))
            integers.extend((self._integer(row, "timestamp", "sample_data"), sensor))
            integers.extend(self._integer(row, side, "sample_data") for side in ("height", "width"))
        table = np.frombuffer(integers, dtype=np.int64).reshape(-1, 4)
        self._columns["keyframes"] = keyframes
        self._columns["file_token"] = Texts.of(own)
        self._columns["file_name"] = Texts.of(names)
        self._columns["file_time_us"] = table[:, 0].copy()
        self._columns["file_sensor"] = table[:, 1].astype(np.int32)
        self._columns["image_hw_px"] = table[:, 2:].astype(np.int32)
        previous = [
            self._find(tokens, "sample_data", token, f"sample_data {owner} as its prev") if token else -1
            for owner, token in zip(own, before, strict=True)
        ]
        self._columns["previous"] = np.array(previous, dtype=np.int32)
        del own, names, before, integers, tokens
        self._columns["ego2global"] = self._read_ego_poses(poses_wanted, len(table))

    def _read_ego_poses(self, wanted: dict[str, list[int]], count: int) -> NDArray[np.float64]:
        poses = np.full((count, 7), np.nan)
        for row in self._rows("ego_pose"):
            for number in wanted.pop(row["token"], ()):
                poses[number, :3] = self._numbers(row, "translation", 3, "ego_pose")
                poses[number, 3:] = self._numbers(row, "rotation", 4, "ego_pose")
        for token, numbers in wanted.items():
            for number in numbers:
                self._find({}, "ego_pose", token, f"sample_data of {self._columns['file_name'][number]}")
        return poses

    def _read_boxes(self, samples: dict[str, int]) -> None:
        """Annotations of detection classes and bike racks, ordered by sample."""
        labels_of_instance = self._read_labels()
        attributes: dict[str, int] = {}
        names: list[str] = []
        for row in self._rows("attribute"):
            attributes[row["token"]] = len(names)
            names.append(self._text(row, "name", "attribute"))
        boxes = _Boxes()
        for row in self._rows("sample_annotation"):
            where = f"sample_annotation {row['token']}"
            instance = self._find(labels_of_instance, "instance", row["instance_token"], where)
            sample = self._find(samples, "sample", row["sample_token"], where)
            label = instance - _OFFSET  # instances are kept as labels, moved so that -1 stays "none"
            if instance < 0 or sample < 0:
                self._skipped.add(row["token"])
                continue
            if label == _OTHER:
                continue
            tokens = row["attribute_tokens"]
            if not isinstance(tokens, list):
                self._report_field(row, "attribute_tokens", "a list", "sample_annotation")
                tokens = []
            attribute = self._find(attributes, "attribute", tokens[0], where) if tokens else -1
            for name, width in (("translation", 3), ("size", 3), ("rotation", 4)):
                if not self._append(boxes.numbers[name], row, name, width, "sample_annotation"):
                    boxes.reported.add(len(boxes.tokens))
            points = (self._integer(row, name, "sample_annotation") for name in ("num_lidar_pts", "num_radar_pts"))
            boxes.integers.extend((sample, label, attribute, *points))
            boxes.tokens.append(row["token"])
            boxes.links.append((row["prev"], row["next"]))
        self._columns["attributes"] = Texts.of(names)
        rows_of_tokens = {token: row for row, token in enumerate(boxes.tokens)}
        self._check_boxes(boxes)
        self._columns |= boxes.columns(self._columns["sample_time_us"], self._neighbour(rows_of_tokens))

    def _read_labels(self) -> dict[str, int]:
        """Label of each instance token, plus _OFFSET."""
        categories: dict[str, int] = {}
        for row in self._rows("category"):
            category = self._text(row, "name", "category")
            name = CATEGORY_TO_CLASS.get(category)
            label = CLASS_NAMES.index(name) if name else BIKE_RACK if category == BIKE_RACK_CATEGORY else _OTHER
            categories[row["token"]] = label + _OFFSET
        instances: dict[str, int] = {}
        for row in self._rows("instance"):
            found = self._find(categories, "category", row["category_token"], f"instance {row['token']}")
            instances[row["token"]] = found if found >= 0 else _OTHER + _OFFSET
        return instances

    def _neighbour(self, tokens: dict[str, int]) -> Callable[[str, str], int]:
        def find(token: str, where: str) -> int:
            return self._find(tokens, "sample_annotation", token, f"sample_annotation {where}") if token else -1

        return find

    def _check_boxes(self, boxes: _Boxes) -> None:
        parts = [
            _matrix(boxes.numbers[name], width) for name, width in (("translation", 3), ("size", 3), ("rotation", 4))
        ]
        translation, size, rotation = parts
        sound = np.isfinite(np.concatenate(parts, axis=1)).all(axis=1)
        sound &= (size > 0).all(axis=1) & (rotation != 0).any(axis=1)
        for row in np.flatnonzero(~sound):
            if row in boxes.reported:
                continue
            self._report(
                "box",
                f"sample_annotation {boxes.tokens[row]} in {self._folder}: expected a finite translation, a positive "
                f"size and a rotation that is not zero, got {translation[row].tolist()}, {size[row].tolist()}, "
                f"{rotation[row].tolist()}",
            )

    def _append(self, column: array[float], row: Row, field: str, count: int, table: str) -> bool:
        """Append a field of numbers to a column; NaN (a report, and False) where it is something else."""
        value = row[field]
        if isinstance(value, list) and len(value) == count:
            try:
                column.fromlist(value)  # all of them or, where one is no number, none
                return True
            except (TypeError, OverflowError):
                pass
        self._report_field(row, field, f"{count} numbers", table)
        column.extend([np.nan] * count)
        return False

    def _numbers(self, row: Row, field: str, count: int, table: str) -> list[float]:
        """A field that holds numbers, flat; NaN (and a report) where it does not."""
        try:
            value = row[field]
            flat = [float(v) for item in value for v in (item if isinstance(item, list) else (item,))]
            if len(flat) == count:
                return flat
        except (TypeError, ValueError, OverflowError):
            pass
        self._report_field(row, field, f"{count} numbers", table)
        return [np.nan] * count

    def _integer(self, row: Row, field: str, table: str) -> int:
        value = row[field]
        if isinstance(value, (int, float)) and value == value and abs(value) < 2**62:
            return int(value)
        self._report_field(row, field, "a number", table)
        return 0

    def _text(self, row: Row, field: str, table: str) -> str:
        if isinstance(row[field], str):
            return str(row[field])
        self._report_field(row, field, "a text", table)
        return ""

    def _report_field(self, row: Row, field: str, expected: str, table: str) -> None:
        path = self._folder / f"{table}.json"
        self._report("table", f"{path}: row {row['token']}: {field} must be {expected}, got {row[field]!r:.80}")


_OTHER = -2  # label of annotations that are neither of a detection class nor bike racks
_OFFSET = 2


class _Boxes:
    """Annotations as they are read, in the table's order."""

    def __init__(self) -> None:
        self.numbers = {name: array("d") for name in ("translation", "size", "rotation")}
        self.integers = array("q")
        self.tokens: list[str] = []
        self.reported: set[int] = set()
        self.links: list[tuple[str, str]] = []

    def columns(self, sample_time_us: NDArray[np.int64], find: Callable[[str, str], int]) -> dict[str, Any]:
        """The index's columns, ordered by sample."""
        table = np.frombuffer(self.integers, dtype=np.int64).reshape(-1, 5)
        order = np.argsort(table[:, 0], kind="stable")
        translation = _matrix(self.numbers["translation"], 3)
        links = np.array(
            [
                [find(before, f"{token} as its prev"), find(after, f"{token} as its next")]
                for token, (before, after) in zip(self.tokens, self.links, strict=True)
            ],
            dtype=np.int64,
        ).reshape(-1, 2)
        velocity = _velocities(translation, sample_time_us[table[:, 0]], links)
        return {
            "box_start": np.searchsorted(table[order, 0], np.arange(len(sample_time_us) + 1)).astype(np.int64),
            "box_label": table[order, 1].astype(np.int8),
            "box_attribute": table[order, 2].astype(np.int16),
            "box_points": table[order, 3:].astype(np.int32),
            "box_translation": translation[order],
            "box_size": _matrix(self.numbers["size"], 3)[order],
            "box_rotation": _matrix(self.numbers["rotation"], 4)[order],
            "box_velocity": velocity[order],
        }


def _velocities(
    translation: NDArray[np.float64], time_us: NDArray[np.int64], links: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Velocity (x, y) in the global frame, NaN where the track is too short or has a gap.

    Args:
        translation: [A, 3].
        time_us: [A], of each annotation's sample.
        links: [A, 2], rows of the annotations before and after, -1 where there is none.
    """
    own = np.arange(len(links))
    first = np.where(links[:, 0] >= 0, links[:, 0], own)
    last = np.where(links[:, 1] >= 0, links[:, 1], own)
    span_s = 1e-6 * time_us[last] - 1e-6 * time_us[first]
    limit_s = np.where((links >= 0).all(axis=1), 2 * _MAX_VELOCITY_SPAN_S, _MAX_VELOCITY_SPAN_S)
    with np.errstate(invalid="ignore", divide="ignore"):
        velocity = (translation[last, :2] - translation[first, :2]) / span_s[:, None]
    velocity[(first == last) | (span_s > limit_s)] = np.nan
    return np.asarray(velocity)


def _matrix(numbers: array[float], width: int) -> NDArray[np.float64]:
    return np.frombuffer(numbers, dtype=np.float64).reshape(-1, width).copy()
