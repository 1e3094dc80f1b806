"""The training loop: a run that was stopped anywhere ends with the very same bits."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import ArtifactError, Interrupted, NonFiniteError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import (
    ContrastLossConfig,
    DistillConfig,
    DistillLosses,
    FeatureLossConfig,
    HeatmapLossConfig,
)
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import (
    AugmentationConfig,
    ImageAugmentationConfig,
    PasteConfig,
    TrainConfig,
)
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.data.object_database import build_database
from bevkd_deploy.data.paste import Paster
from bevkd_deploy.data.sampling import EpochSampler
from bevkd_deploy.distill import event_log
from bevkd_deploy.distill.loop import LoopHooks, TrainingState, fit
from bevkd_deploy.distill.step import DistillationStep, TrainingStep
from bevkd_deploy.distill.tap_report import TappedNetwork, report_taps
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.training import _total_steps
from bevkd_deploy.teachers.frozen import FrozenTeacher

OnStep = Callable[[int], None]


class Crash(Exception):
    """Stands for a kill."""


class Runner:
    """Trains a fresh student: 4 frames in batches of 1, 3 epochs, 12 steps."""

    def __init__(self, dataset: FrameDataset, teacher_config: ModelConfig, student_config: ModelConfig) -> None:
        self.dataset = dataset
        self.teacher_config, self.student_config = teacher_config, student_config
        self.steps: list[tuple[int, int]] = []
        self.epochs: list[int] = []
        self.losses: dict[int, dict[str, float]] = {}

    def module(self) -> DistillationStep:
        spec, teacher_spec = self.dataset.specs["student"], self.dataset.specs["teacher"]
        teacher = FrozenTeacher(build_detector(self.teacher_config, teacher_spec, 1), teacher_spec)
        losses = DistillLosses(
            heatmap=HeatmapLossConfig(),
            feature=FeatureLossConfig(),
            # More cells than are drawn: the draws must come back too, and so must the queue.
            contrast=ContrastLossConfig(embedding_channels=8, cells_per_sample=32, queue_size=80),
        )
        student = build_detector(self.student_config, spec, 0)
        config = DistillConfig(losses=losses, warmup_fraction=0.3)
        inputs = collate([self.dataset[0]])["inputs"]
        taps = report_taps(
            TappedNetwork.student(student, inputs["student"]), TappedNetwork.teacher(teacher, inputs["teacher"]), config
        )
        torch.manual_seed(3)
        return DistillationStep(student, teacher, config, taps)

    def run(
        self,
        folder: Path,
        *,
        resume: bool = False,
        key: str = "a" * 64,
        on_step: OnStep = lambda step: None,
        on_epoch: OnStep = lambda epoch: None,
        **config: Any,
    ) -> dict[str, Tensor]:
        module = self.module()

        def note(step: int, total: int, losses: dict[str, float]) -> None:
            self.steps.append((step, total))
            self.losses[step] = losses
            on_step(step)

        def end(epoch: int) -> None:
            self.epochs.append(epoch)
            on_epoch(epoch)

        saved: list[nn.Module] = []
        fit(
            module,
            self.dataset,
            TrainConfig(**{"epochs": 3, "batch_size": 1, "learning_rate": 0.01, **config}),
            seed=0,
            run_dir=folder,
            state=TrainingState(folder / "state.pt", key),
            resume=resume,
            hooks=LoopHooks(note, end, saved.append),
        )
        assert saved[-1] is module
        return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture
def runner(
    make_dataset: Callable[..., FrameDataset],
    teacher_config: ModelConfig,
    tiny_model_config: Callable[..., ModelConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> Runner:
    monkeypatch.setattr(event_log, "EVENT_EVERY_STEPS", 1)
    augmentation = AugmentationConfig(flip_x=True, flip_y=True, rotation_rad=0.4)
    return Runner(make_dataset(augmentation), teacher_config, tiny_model_config())


@pytest.fixture(scope="module")
def finished() -> dict[str, Any]:
    """The uninterrupted run, filled by the first test that needs it."""
    return {}


@pytest.fixture
def uninterrupted(runner: Runner, finished: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not finished:
        folder = tmp_path_factory.mktemp("uninterrupted")
        finished["weights"] = runner.run(folder)
        finished["events"] = events_of(folder)
        finished["steps"], finished["epochs"] = list(runner.steps), list(runner.epochs)
        runner.steps.clear()
        runner.epochs.clear()
    return finished


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def without_time(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stop_at(step: int, how: Callable[[], None]) -> OnStep:
    def act(now: int) -> None:
        if now == step:
            how()

    return act


def crash() -> None:
    raise Crash


def test_a_run_tells_its_caller_what_happens(uninterrupted: dict[str, Any]) -> None:
    assert uninterrupted["steps"] == [(step, 12) for step in range(1, 13)]
    assert uninterrupted["epochs"] == [1, 2, 3]
    events = uninterrupted["events"]
    assert [event["step"] for event in events] == list(range(1, 13))
    assert [event["epoch"] for event in events] == [0] * 4 + [1] * 4 + [2] * 4
    assert set(events[0]["losses"]) == {
        "loss", "heatmap_loss", "box_loss", "heatmap_kd_loss", "feature_kd_loss", "contrast_kd_loss",
    }  # fmt: skip
    for event in events:
        parts = [value for name, value in event["losses"].items() if name != "loss"]
        assert event["losses"]["loss"] == pytest.approx(sum(parts), rel=1e-5)
    rates = [event["learning_rate"] for event in events]
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates[0] < max(rates) and rates[-1] < 0.001
    assert rates.index(max(rates)) in (1, 2)  # warm-up over the first fifth


def test_every_epoch_takes_draws_of_its_own(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    read = FrameDataset.__getitem__

    def note(dataset: FrameDataset, position: int) -> dict[str, Any]:
        taken.append(position)
        return read(dataset, position)

    monkeypatch.setattr(FrameDataset, "__getitem__", note)
    runner.run(tmp_path)
    del taken[0]  # by which the taps were found
    assert [sorted(taken[start : start + 4]) for start in (0, 4, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("step", [2, 4, 6, 9])
def test_ctrl_c_at_any_step_resumes_to_the_same_bits(
    runner: Runner, uninterrupted: dict[str, Any], tmp_path: Path, step: int
) -> None:
    """Within the first epoch, at its end, within the second and the third."""
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=rf"stopped at step {step} of 12; the state is saved"):
        runner.run(tmp_path, on_step=stop_at(step, lambda: signal.raise_signal(signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is handler
    assert runner.steps[-1] == (step, 12)
    assert_same_bits(uninterrupted["weights"], runner.run(tmp_path, resume=True))
    assert [now for now, _ in runner.steps] == list(range(1, 13))
    assert without_time(events_of(tmp_path)) == without_time(uninterrupted["events"])


def test_a_kill_resumes_from_the_last_state_and_drops_later_events(
    runner: Runner, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        runner.run(tmp_path, on_step=stop_at(7, crash), checkpoint_every_steps=5)
    with (tmp_path / "events.jsonl").open("a") as handle:
        handle.write('{"event": "step", "st')  # cut short by the kill
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
    runner.steps.clear()
    weights = runner.run(tmp_path, resume=True, checkpoint_every_steps=5)
    assert [now for now, _ in runner.steps] == list(range(6, 13))
    assert_same_bits(uninterrupted["weights"], weights)
    assert without_time(events_of(tmp_path)) == without_time(uninterrupted["events"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_tensorboard_shows_every_step_once(runner: Runner, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Crash):
        runner.run(tmp_path, on_step=stop_at(8, crash), checkpoint_every_steps=6)
    runner.run(tmp_path, resume=True)
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    shown = board.Scalars("loss")
    assert [event.step for event in shown] == list(range(1, 13))
    assert [event.value for event in shown] == pytest.approx([runner.losses[n]["loss"] for n in range(1, 13)])


def test_a_kill_while_the_epoch_ends_loses_nothing(
    runner: Runner, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """The state is written before the caller evaluates; evaluation may fail."""
    with pytest.raises(Crash):
        runner.run(tmp_path, on_epoch=stop_at(2, crash))
    runner.steps.clear()
    assert_same_bits(uninterrupted["weights"], runner.run(tmp_path, resume=True))
    assert [now for now, _ in runner.steps] == [9, 10, 11, 12]


def test_a_second_ctrl_c_stops_at_once(runner: Runner, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        runner.run(tmp_path, on_step=stop_at(1, twice))


def test_a_finished_run_resumes_to_nothing(runner: Runner, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    runner.run(tmp_path)
    runner.steps.clear()
    module = runner.module()
    fit(
        module, runner.dataset, TrainConfig(epochs=3, batch_size=1), seed=0, run_dir=tmp_path,
        state=TrainingState(tmp_path / "state.pt", "a" * 64), resume=True,
        hooks=LoopHooks(lambda *_: None, lambda _: None, lambda _: None),
    )  # fmt: skip
    assert_same_bits(uninterrupted["weights"], module.state_dict())
    assert len(events_of(tmp_path)) == 12


def test_resuming_needs_a_state_of_the_same_key(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nothing to resume: .*state\.pt does not exist"):
        runner.run(tmp_path, resume=True)
    runner.run(tmp_path, epochs=1)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ArtifactError) as error:
        runner.run(tmp_path, resume=True, key="b" * 64)
    assert "belongs to another recipe, data or teacher (key aaaaaaaaaaaa, this run has bbbbbbbbbbbb)" in str(
        error.value
    )
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_new_run_starts_a_new_log(runner: Runner, tmp_path: Path) -> None:
    for _ in range(2):
        runner.run(tmp_path, epochs=1)
    assert [event["step"] for event in events_of(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("value", "term"), [(float("nan"), "heatmap_loss"), (3e38, "box_loss")])
def test_a_non_finite_loss_names_the_term_and_the_samples(
    runner: Runner, tmp_path: Path, value: float, term: str, tiny_spec: GraphSpec
) -> None:
    detector = build_detector(runner.student_config, tiny_spec, 0)
    broken = detector.bbox_head.heatmap[-1] if term == "heatmap_loss" else detector.bbox_head.height
    nn.init.constant_(broken.bias, value)
    before = [parameter.clone() for parameter in detector.parameters()]
    tokens = [sample.token for sample in runner.dataset.samples]
    with pytest.raises(NonFiniteError) as error:
        fit(
            TrainingStep(detector, "student"), runner.dataset, TrainConfig(epochs=1, batch_size=4), seed=0,
            run_dir=tmp_path, state=TrainingState(tmp_path / "state.pt", "k"), resume=False,
            hooks=LoopHooks(lambda *_: None, lambda _: None, lambda _: None),
        )  # fmt: skip
    became = "nan" if term == "heatmap_loss" else "inf"
    assert str(error.value).startswith(f"{term} became {became} on samples [")
    assert all(token in str(error.value) for token in tokens)
    assert "lower the learning rate" in str(error.value)
    same = [
        torch.equal(old, new) for old, new in zip(before, detector.parameters(), strict=True) if old.isfinite().all()
    ]
    assert all(same)  # the weights were not updated with it
    assert not (tmp_path / "state.pt").exists()


def test_a_class_balanced_run_resumes_to_the_same_bits(runner: Runner, tmp_path: Path) -> None:
    """Draws with replacement, views and pasted objects are functions of the position, workers or not."""
    paste = PasteConfig(up_to=dict.fromkeys(CLASS_NAMES, 3), until_fraction=0.5)
    image = ImageAugmentationConfig(scale=(0.9, 1.2), flip=True, rotation_rad=0.1)
    plain = runner.dataset
    augmentation = plain.augmentation.model_copy(update={"image": image, "paste": paste})
    train = TrainConfig(epochs=2, batch_size=1, class_balanced=True)
    order = EpochSampler.of_training(plain.samples, train, 0)
    paster = Paster(build_database(plain.samples, paste), paste, order.first_position_after(1))
    runner.dataset = FrameDataset(
        plain.samples, plain.specs, target_of="student", min_radius_cells=1, augmentation=augmentation, paster=paster
    )
    changes = {"epochs": 2, "batch_size": 1, "class_balanced": True}
    weights = runner.run(tmp_path / "whole", **changes)
    per_epoch = len(order)
    total = _total_steps(runner.dataset, train, 0)
    assert runner.steps == [(step, total) for step in range(1, total + 1)]
    assert total == 2 * per_epoch != 8
    middle = per_epoch + 2
    with pytest.raises(Interrupted):
        runner.run(tmp_path / "cut", on_step=stop_at(middle, lambda: signal.raise_signal(signal.SIGINT)), **changes)
    resumed = runner.run(tmp_path / "cut", resume=True, workers=2, **changes)
    assert_same_bits(weights, resumed)
    assert without_time(events_of(tmp_path / "cut")) == without_time(events_of(tmp_path / "whole"))


def test_a_repeated_epoch_and_batches_that_do_not_divide(runner: Runner, tmp_path: Path) -> None:
    runner.run(tmp_path, epochs=1, batch_size=3, repeat=2)  # 8 frames: two batches of three, the rest is left out
    assert runner.steps == [(1, 2), (2, 2)]
    runner.steps.clear()
    runner.run(tmp_path, epochs=1, batch_size=9)  # a batch larger than the data takes what there is
    assert runner.steps == [(1, 1)]
