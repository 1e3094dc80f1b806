"""A cached teacher gives what the live one gives, and does not run where its maps are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import AugmentationConfig
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.data.source import open_split
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.teachers.cache import CachedTeacher
from bevkd_deploy.teachers.frozen import FrozenTeacher
from bevkd_deploy.teachers.map_store import MapStore

MAPS = ("heatmap", "reg", "height", "dim", "rot", "vel")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_frames(tiny_world: Path, tiny_spec: GraphSpec, teacher_spec: GraphSpec) -> Callable[..., FrameDataset]:
    samples = open_split(DataConfig(source="nuscenes", root="unused"), tiny_world, "train")

    def make(augmentation: AugmentationConfig | None = None) -> FrameDataset:
        specs = {"student": tiny_spec, "teacher": teacher_spec}
        return FrameDataset(samples, specs, target_of="student", min_radius_cells=1, augmentation=augmentation)

    return make


@pytest.fixture
def teacher_config(tiny_model_config: Callable[..., ModelConfig]) -> ModelConfig:
    return tiny_model_config(width=12, lidar={"max_points": 9})


@pytest.fixture
def teacher_spec(teacher_config: ModelConfig, tiny_spec: GraphSpec) -> GraphSpec:
    return teacher_config.graph_spec(tiny_spec.cameras)


class Counting(FrozenTeacher):
    """Counts the frames it sees."""

    seen = 0

    def __call__(self, inputs: dict[str, Tensor] | None, positions: Any = ()) -> dict[str, Tensor]:
        assert inputs is not None
        self.seen += len(inputs["images"])
        return super().__call__(inputs, positions)


@pytest.fixture
def live(teacher_config: ModelConfig, teacher_spec: GraphSpec) -> Counting:
    detector = build_detector(teacher_config, teacher_spec, 0)
    with torch.no_grad():  # an untrained head says nearly the same everywhere, in float16 exactly the same
        for parameter in detector.bbox_head.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return Counting(detector, teacher_spec)


def cached(
    live: FrozenTeacher, folder: Path, frames: FrameDataset, dtype: torch.dtype = torch.float16
) -> CachedTeacher:
    return CachedTeacher(live, MapStore(folder, "k", MAPS, dtype), frames)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def ask(teacher: CachedTeacher, frames: FrameDataset, *positions: int) -> dict[str, Tensor]:
    batch = collate([frames[position] for position in positions])
    return teacher(batch["inputs"].get("teacher"), batch["position"])


def test_a_full_precision_cache_gives_the_live_teachers_bits(
    live: Counting, make_frames: Callable[..., FrameDataset], tmp_path: Path
) -> None:
    frames = make_frames(AugmentationConfig(flip_x=True, rotation_rad=0.4))
    teacher = cached(live, tmp_path, frames, torch.float32)
    for position in (2, 6):
        inputs = collate([frames[position]])["inputs"]["teacher"]
        assert same(ask(teacher, frames, position), live(inputs))
    live.seen = 0
    both = ask(teacher, frames, 2, 6)
    assert live.seen == 0
    # In one batch the live teacher rounds otherwise.
    together = live(collate([frames[2], frames[6]])["inputs"]["teacher"])
    for name, value in together.items():
        assert value.dtype == both[name].dtype == torch.float32
        torch.testing.assert_close(both[name], value, rtol=1e-5, atol=1e-5)


def test_a_half_precision_cache_is_within_half_a_step(
    live: Counting, make_frames: Callable[..., FrameDataset], tmp_path: Path
) -> None:
    """float16 keeps 11 bits: 4.9e-4 of a value at most."""
    frames = make_frames()
    got = ask(cached(live, tmp_path, frames), frames, 1)
    exact = live(collate([frames[1]])["inputs"]["teacher"])
    for name, value in exact.items():
        torch.testing.assert_close(got[name], value, rtol=2**-11, atol=2**-25)
        assert not torch.equal(got[name], value)


def test_the_first_answer_is_the_later_one(
    live: Counting, make_frames: Callable[..., FrameDataset], tmp_path: Path
) -> None:
    """Alone or in any batch, computed or read, in this process or the next."""
    frames = make_frames(AugmentationConfig(flip_y=True))
    teacher = cached(live, tmp_path, frames)
    first = ask(teacher, frames, 5, 0, 7)
    assert live.seen == 3
    assert same(ask(teacher, frames, 5, 0, 7), first)
    teacher.store.flush()
    again = cached(live, tmp_path, frames)
    assert same(ask(again, frames, 5, 0, 7), first)
    assert live.seen == 3
    mixed = ask(cached(live, tmp_path / "other", frames), frames, 3, 7, 1, 5)
    assert torch.equal(mixed["heatmap"][1], first["heatmap"][2])
    assert torch.equal(mixed["heatmap"][3], first["heatmap"][0])
    assert not torch.equal(mixed["heatmap"][0], first["heatmap"][0])


def test_the_students_autocast_changes_nothing(
    live: Counting, make_frames: Callable[..., FrameDataset], tmp_path: Path
) -> None:
    frames = make_frames()
    plain = ask(cached(live, tmp_path / "plain", frames), frames, 0, 1)
    teacher = cached(live, tmp_path / "inside", frames)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(ask(teacher, frames, 0, 1), plain)
        teacher.store.flush()
        assert same(ask(teacher, frames, 0, 1), plain)


def test_without_augmentation_a_frame_is_known_in_every_epoch(
    live: Counting, make_frames: Callable[..., FrameDataset], tmp_path: Path
) -> None:
    plain = make_frames()
    first = ask(cached(live, tmp_path / "plain", plain), plain, 1, 5, 9)  # four frames: the same one three times
    assert live.seen == 1
    assert torch.equal(first["heatmap"][0], first["heatmap"][2])
    live.seen = 0
    drawn = make_frames(AugmentationConfig(rotation_rad=0.4))
    other = ask(cached(live, tmp_path / "drawn", drawn), drawn, 1, 5, 9)
    assert live.seen == 3
    assert not torch.equal(other["heatmap"][0], other["heatmap"][1])


def test_inputs_that_were_left_out_are_made_where_the_store_fails(
    live: Counting, make_frames: Callable[..., FrameDataset], tmp_path: Path
) -> None:
    frames = make_frames(AugmentationConfig(flip_y=True))
    teacher = cached(live, tmp_path, frames)
    first = ask(teacher, frames, 2, 4)
    teacher.store.flush()
    teacher = cached(live, tmp_path, frames)
    frames.leave_out("teacher", teacher.store)
    assert list(collate([frames[2], frames[4]])["inputs"]) == ["student"]
    assert list(collate([frames[2], frames[3]])["inputs"]) == ["student"]
    assert list(collate([frames[1], frames[3]])["inputs"]) == ["student", "teacher"]
    live.seen = 0
    mixed = ask(teacher, frames, 2, 3)
    assert live.seen == 1
    assert torch.equal(mixed["heatmap"][0], first["heatmap"][0])
    batch = collate([frames[2], frames[4]])
    for file in tmp_path.glob("maps-*"):
        file.write_bytes(file.read_bytes()[:-9])
    teacher = cached(live, tmp_path, frames)
    assert same(teacher(None, batch["position"]), first)


def test_a_cached_teacher_is_no_module_either(
    live: Counting, make_frames: Callable[..., FrameDataset], tmp_path: Path
) -> None:
    teacher = cached(live, tmp_path, make_frames())
    assert not isinstance(teacher, torch.nn.Module)
    assert teacher.spec is live.spec and teacher.model is live.model
    assert teacher.to(torch.device("cpu")) is teacher
