"""Taps under what training does to a model: copies, pickles, autocast, activation checkpointing, two processes."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.distill.taps import Taps

X = torch.linspace(-1, 1, 2 * 3 * 5 * 4).reshape(2, 3, 5, 4)


class Net(nn.Module):
    """Two blocks, of which the second may be checkpointed."""

    def __init__(self, use_reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.use_reentrant = use_reentrant
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.use_reentrant is None:
            return self.block(x)
        out: Tensor = checkpoint(self.block, x, use_reentrant=self.use_reentrant)
        return out


def hooks(model: nn.Module) -> list[Any]:
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def gradients(model: Net, paths: list[str], backward_inside: bool) -> tuple[dict[str, int], list[Tensor]]:
    """Firings, and gradients of a loss on the output and on every tap."""
    with Taps(model, paths, detach=False) as taps:
        out = model(X)
        if backward_inside:
            with_taps = {path: len(fired) for path, fired in taps._record.items()}
            out.pow(2).sum().backward(retain_graph=True)  # recomputes the checkpointed block while the taps listen
            assert {path: len(fired) for path, fired in taps._record.items()} == with_taps
            model.zero_grad()
    firings = taps.firings()
    loss = out.pow(2).sum() + sum(tensor.pow(3).sum() for fired in firings.values() for tensor in fired)
    loss.backward()
    return {path: len(fired) for path, fired in firings.items()}, [p.grad.clone() for p in model.parameters()]


PATHS = ["stem", "block.0", "block.2"]


@pytest.mark.parametrize("backward_inside", [False, True])
def test_non_reentrant_checkpointing_changes_neither_firings_nor_gradients(backward_inside: bool) -> None:
    plain = gradients(Net(), PATHS, backward_inside=False)
    assert plain[0] == dict.fromkeys(PATHS, 1)
    assert all(gradient.abs().sum() > 0 for gradient in plain[1])
    checkpointed = gradients(Net(use_reentrant=False), PATHS, backward_inside)
    assert checkpointed[0] == plain[0]
    for ours, expected in zip(checkpointed[1], plain[1], strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_reentrant_checkpointing_outside_the_tap_is_fine(backward_inside: bool) -> None:
    # The stem is outside, the block's own result inside the checkpointed part.
    expected, ours = gradients(Net(), ["stem"], False), gradients(Net(use_reentrant=True), ["stem"], backward_inside)
    assert ours[0] == {"stem": 1}
    for gradient, other in zip(ours[1], expected[1], strict=True):
        assert torch.allclose(gradient, other, atol=1e-6)


def test_reentrant_checkpointing_around_a_student_tap_is_an_error_with_its_name() -> None:
    model = Net(use_reentrant=True)
    with Taps(model, PATHS, detach=False, role="student") as taps:
        model(X)
    with pytest.raises(UsageError, match=r"tap 'block\.0' of the student carries no gradient: .*use_reentrant=True"):
        taps.take()
    with Taps(model, PATHS, detach=True) as teacher:  # a teacher's capture needs none
        model(X)
    assert not any(tensor.requires_grad for tensor in teacher.take().values())


def test_a_student_tap_that_nothing_trains_is_an_error_with_its_name() -> None:
    model = Net()
    model.stem.requires_grad_(False)
    with Taps(model, ["stem"], detach=False, role="student") as taps:
        model(X)
    with pytest.raises(UsageError, match=r"tap 'stem' of the student carries no gradient: nothing up to it"):
        taps.take()
    with torch.no_grad(), Taps(model, ["stem"], detach=False) as taps:  # asked for without gradients: a dry run
        model(X)
    assert taps.take()["stem"].shape == (2, 4, 5, 4)


def test_paths_do_not_see_a_checkpoint_wrapper() -> None:
    model = Net()
    model.block = checkpoint_wrapper(model.block)  # type: ignore[assignment]
    expected = gradients(Net(), ["block", "block.0"], False)
    ours = gradients(model, ["block", "block.0"], True)
    assert ours[0] == {"block": 1, "block.0": 1}
    for gradient, other in zip(ours[1], expected[1], strict=True):
        assert torch.allclose(gradient, other, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("use_reentrant", [None, False])
def test_autocast(dtype: torch.dtype, use_reentrant: bool | None) -> None:
    """Captures have the dtype that the module computed in, are finite, and lead gradients back."""
    model = Net(use_reentrant)
    with torch.autocast("cpu", dtype), Taps(model, PATHS, detach=False) as taps:
        model(X)
    captured = taps.take()
    assert {tensor.dtype for tensor in captured.values()} == {dtype}
    reference = gradients(Net(), PATHS, False)[1]
    sum(tensor.float().pow(2).sum() for tensor in captured.values()).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0
    assert len(reference) == len(list(model.parameters()))


def test_a_copy_made_while_taps_are_open_writes_nothing_into_them() -> None:
    model = Net()
    with Taps(model, ["stem", "block"], detach=False) as taps:
        model(X)  # a capture that is no leaf: deepcopy could not copy it
        twin = copy.deepcopy(model)
        assert not any(getattr(hook, "taps", None) for hook in hooks(twin))  # nothing that leads back
        twin(X)
        twin(X)
    assert hooks(model) == []
    assert {path: len(fired) for path, fired in taps.firings().items()} == {"stem": 1, "block": 1}
    with Taps(twin, ["stem"], detach=False) as own:
        twin(X * 2)
    assert torch.equal(own.take()["stem"], twin.stem(X * 2))


def test_copied_taps_belong_to_the_copied_model() -> None:
    model = Net()
    taps = Taps(model, ["stem", {"path": "block.*", "count": 3}], detach=True, role="teacher")
    with taps:
        model(X)
        twin, copied = copy.deepcopy((model, taps))
    assert copied.firings() == {}  # closed and empty
    with torch.no_grad():
        twin.stem.weight.zero_()
        twin.stem.bias.fill_(3.0)
    with copied:
        model(X)  # the original: not heard
        twin(X)
    heard = copied.take()
    assert list(heard) == ["stem", "block.0", "block.1", "block.2"]
    assert (heard["stem"] == 3.0).all()
    assert taps.take()["stem"].unique().numel() > 1


def test_taps_in_a_module_that_they_listen_to_are_copied_with_it() -> None:
    model = Net()
    model.own = Taps(model, ["stem"], detach=True)  # type: ignore[assignment]
    twin = copy.deepcopy(model)
    with twin.own:
        twin(X)
        model(X)
    assert len(twin.own.firings()["stem"]) == 1
    assert model.own.firings() == {}


def test_pickling() -> None:
    model = Net()
    taps = Taps(model, ["stem"], detach=False, role="student")
    with taps:
        model(X)
        both = pickle.loads(pickle.dumps((model, taps)))
        alone = io.BytesIO()
        torch.save(model, alone)
    twin, again = both
    assert again.firings() == {} and again.role == "student"
    with again:
        twin(X)
        model(X)
    assert torch.equal(again.take()["stem"], model.stem(X))
    assert len(taps.firings()["stem"]) == 1
    alone.seek(0)
    loaded = torch.load(alone, weights_only=False)
    assert torch.equal(loaded(X), model(X))
    assert alone.getbuffer().nbytes < 20_000  # no captured maps on board


def test_two_processes(tmp_path: Path) -> None:
    """DistributedDataParallel over gloo: gradients of two processes are those of one with both halves."""
    script = Path(__file__).with_name("ddp_worker.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    for found in ranks:
        assert set(found) == {"outside", "inside", "checkpointed"}
        for name, result in found.items():
            assert result["names"] == ["stem", "block.0", "block.2"], name
            assert result["firings"] == [1, 1, 1, 1, 1, 1], name  # of two steps
            assert result["largest"] > 1e-3, name
            assert result["difference"] < 1e-5 * result["largest"], name
