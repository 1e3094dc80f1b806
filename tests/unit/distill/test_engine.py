"""One step of the engine: precision, accumulation, clipping, averaging and stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import CannotRunHere, NonFiniteError, UsageError
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import StageConfig, TrainConfig
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.distill.engine import Engine
from bevkd_deploy.distill.progress import Plan, Progress, Stage
from bevkd_deploy.distill.step import StepLosses, TrainingStep
from bevkd_deploy.models.factory import build_detector

CPU = torch.device("cpu")


class StillNorms(TrainingStep):
    """Batch norms keep their statistics, so that a frame's output does not depend on its batch."""

    def train(self, mode: bool = True) -> StillNorms:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make(tiny_model_config: Callable[..., ModelConfig], make_dataset: Callable[..., FrameDataset]) -> MakeEngine:
    spec = make_dataset().specs["student"]

    def make(kind: type[TrainingStep] = TrainingStep, frames: int = 8, **train: Any) -> Engine:
        config = TrainConfig(**{"epochs": 2, "learning_rate": 0.01, **train})
        module = kind(build_detector(tiny_model_config(), spec, 0), "student")
        engine = Engine(module, config, Plan.of(config, frames), CPU)
        engine.begin_epoch(0)
        return engine

    return make


@pytest.fixture
def frames(make_dataset: Callable[..., FrameDataset]) -> list[dict[str, Any]]:
    """Four frames with unlike numbers of objects."""
    dataset = make_dataset()
    found = [dataset[index] for index in range(4)]
    assert len({float(frame["targets"]["mask"][:, 0].sum()) for frame in found}) > 1
    return found


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in engine.module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.removeprefix("detector.") for name in before if not torch.equal(before[name], after[name])}


def gradients(engine: Engine) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in engine.module.named_parameters() if value.grad is not None}


def set_scale(engine: Engine, scale: float) -> None:
    engine.precision.scaler.load_state_dict({**engine.precision.scaler.state_dict(), "scale": scale})


def norm_of(gradients: dict[str, Tensor]) -> float:
    return float(torch.stack([value.norm() for value in gradients.values()]).norm())


@pytest.mark.parametrize("limit", [0.5, 1e6])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2), (2,)])
def test_accumulated_batches_are_one_big_batch(
    make: MakeEngine, frames: list[dict[str, Any]], sizes: tuple[int, ...], limit: float
) -> None:
    """Objects are counted over the whole step; a short last group is the mean of what it has."""
    parts, start = [], 0
    for size in sizes:
        parts.append(collate(frames[start : start + size]))
        start += size
    apart, whole = (make(StillNorms, max_grad_norm=limit) for _ in range(2))
    split, big = apart.step(parts).losses, whole.step([collate(frames[:start])]).losses
    assert split == pytest.approx(big, rel=1e-5)
    expected = gradients(whole)
    if limit == 0.5:  # clipped once it is accumulated, not part by part
        assert norm_of(gradients(apart)) == pytest.approx(limit, rel=1e-3)
    for name, value in gradients(apart).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert apart.done == whole.done == 1


def test_a_moving_average_by_hand(make: MakeEngine, frames: list[dict[str, Any]]) -> None:
    engine = make(ema_decay=0.5)
    name = next(key for key in weights(engine) if key.endswith("conv.0.weight"))
    expected = weights(engine)[name].double()
    batch = collate(frames[:2])
    for update in range(1, 9):
        engine.step([batch])
        decay = min(0.5, (1 + update) / (10 + update))  # 2/11, 3/12, ... until 9/18
        expected = decay * expected + (1 - decay) * weights(engine)[name].double()
    own = weights(engine)
    with engine.averaged():
        inside = weights(engine)
    torch.testing.assert_close(inside[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert name in {f"detector.{key}" for key in moved(own, inside)}
    statistics = [key for key in own if "running" in key or "num_batches" in key]
    assert statistics and all(torch.equal(own[key], inside[key]) for key in statistics)
    assert moved(own, weights(engine)) == set()  # its own weights again, bit for bit
    saved = engine.state_dict()
    assert {f"detector.{key}" for key in saved["average"]["values"]} == {key for key in own if "detector" in key}
    assert torch.equal(saved["module"][name], own[name])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_fp32(make: MakeEngine, frames: list[dict[str, Any]], precision: str) -> None:
    batch = collate(frames)
    exact, rounded = make(), make(precision=precision)
    if precision == "fp16":
        set_scale(rounded, 1024.0)  # the one that it begins with, 65536, is too much for this network
    first, second = exact.step([batch]).losses, rounded.step([batch]).losses
    assert second == pytest.approx(first, rel=0.02)
    assert second["loss"] != first["loss"]
    assert all(value.dtype == torch.float32 for value in rounded.module.parameters())
    assert (rounded.precision.scaler.get_scale() > 1) == (precision == "fp16")
    assert norm_of(gradients(rounded)) == pytest.approx(norm_of(gradients(exact)), rel=0.1)  # unscaled
    close = [
        torch.nn.functional.cosine_similarity(value.flatten(), gradients(rounded)[name].flatten(), dim=0)
        for name, value in gradients(exact).items()
    ]
    assert torch.stack(close).median() > (0.99 if precision == "fp16" else 0.9)


def test_an_overflow_of_fp16_skips_the_step_and_lowers_the_scale(
    make: MakeEngine, frames: list[dict[str, Any]]
) -> None:
    engine, batch = make(precision="fp16", ema_decay=0.9), collate(frames)
    set_scale(engine, 1024.0)
    engine.step([batch])
    before = {name: value.detach().clone() for name, value in engine.module.named_parameters()}
    rate = engine.learning_rate
    updates = engine.average.updates if engine.average else 0
    set_scale(engine, 2.0**60)
    engine.step([batch])
    assert moved(before, dict(engine.module.named_parameters())) == set()
    assert engine.precision.scaler.get_scale() == 2.0**59
    assert engine.average is not None and engine.average.updates == updates
    assert engine.done == 2 and engine.learning_rate == rate

    for value in engine.module.parameters():
        value.register_hook(lambda gradient: gradient * float("inf"))
    set_scale(engine, 1.0)
    with pytest.raises(NonFiniteError, match=r"overflow fp16 even at a loss scale of 0\.5; use train\.precision bf16"):
        engine.step([batch])


def test_a_gradient_that_is_not_finite_stops_by_sample(make: MakeEngine, frames: list[dict[str, Any]]) -> None:
    engine, batch = make(), collate(frames[:2])
    before = weights(engine)
    next(engine.module.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteError, match=rf"the gradient became nan on samples \['{batch['token'][0]}', "):
        engine.step([batch])
    assert not any("weight" in name or "bias" in name for name in moved(before, weights(engine)))


def test_a_precision_that_the_device_lacks(make: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise RuntimeError("mkldnn has no half")

    monkeypatch.setattr(nn.functional, "conv2d", refuse)
    with pytest.raises(CannotRunHere, match=r"train\.precision fp16 cannot run on this device \(cpu\): mkldnn has no"):
        make(precision="fp16")


STAGES = (
    StageConfig(epochs=1, freeze=("img_backbone", "pts_*"), learning_rate=0.001, schedule="cosine"),
    StageConfig(epochs=1),
)


def test_a_stage_freezes_modules_and_has_its_own_rate(make: MakeEngine, frames: list[dict[str, Any]]) -> None:
    engine, batch = make(stages=STAGES, frames=8, batch_size=2), collate(frames[:2])
    before, rates = weights(engine), []
    for _ in range(4):
        rates.append(engine.learning_rate)
        engine.step([batch])
    changed = moved(before, weights(engine))
    assert changed and not [name for name in changed if name.startswith(("img_backbone", "pts_"))]
    assert any("running_mean" in name for name in changed)  # of what is trained
    assert max(rates) == 0.001
    middle = weights(engine)
    engine.begin_epoch(1)
    rates = []
    for _ in range(4):
        rates.append(engine.learning_rate)
        engine.step([batch])
    changed = moved(middle, weights(engine))
    assert {"img_backbone.conv1.weight", "img_backbone.bn1.running_mean"} <= changed
    assert any(name.startswith("pts_backbone") for name in changed)
    assert max(rates) == pytest.approx(0.01, rel=0.2)


def test_freezing_what_is_not_there(make: MakeEngine) -> None:
    with pytest.raises(UsageError, match=r"no module 'img_bakbone'\. Did you mean one of \['img_backbone'"):
        make(stages=[{"epochs": 2, "freeze": ["img_bakbone"]}])


def test_the_step_module_is_told_where_the_training_is(make: MakeEngine, frames: list[dict[str, Any]]) -> None:
    seen: list[Progress] = []
    begun: list[Stage] = []

    class Noting(TrainingStep):
        def begin_stage(self, stage: Stage) -> None:
            begun.append(stage)

        def forward(self, batch: dict[str, Any], progress: Progress) -> StepLosses:
            seen.append(progress)
            return super().forward(batch, progress)

    stages = [{"epochs": 1, "losses": ["heatmap"]}, {"epochs": 3, "schedule": "cosine"}]
    engine = make(Noting, epochs=4, frames=2, batch_size=1, accumulate=2, stages=stages)
    batch = collate(frames[:1])
    for epoch in range(2):
        engine.begin_epoch(epoch)
        engine.step([batch, batch])
    assert [(progress.step, progress.total_steps, progress.stage.index) for progress in seen] == [
        (0, 4, 0), (0, 4, 0), (1, 4, 1), (1, 4, 1),
    ]  # fmt: skip
    assert [progress.fraction for progress in seen] == [0, 0, 0.25, 0.25]
    assert begun == [seen[0].stage, seen[2].stage]
    assert seen[0].stage.has_term("heatmap") and not seen[0].stage.has_term("feature")
    assert seen[2].stage.has_term("feature")
    assert seen[2].stage == replace(seen[0].stage, index=1, first_epoch=1, epochs=3, terms=None, schedule="cosine")


def test_resuming_in_another_number_of_processes_says_so(
    make: MakeEngine, frames: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    engine = make()
    engine.step([collate(frames[:2])])
    content = engine.state_dict()
    other = make()
    other.restore({**content, "random": content["random"] * 2})
    assert moved(weights(engine), weights(other)) == set()
    assert "resumed by 1 processes, saved by 2: not to the same bits" in caplog.text
