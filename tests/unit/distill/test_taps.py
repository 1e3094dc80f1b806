"""Taps: what they capture, what they say, and that they leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.distill.taps import Taps


class Inner(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"maps": [x * 2, (x * 3, x * 4)], "count": 7, "nothing": None}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(2, 2, bias=False)
        self.block = nn.Sequential(nn.Identity(), Inner())
        nn.init.eye_(self.conv.weight)

    def forward(self, x: Tensor, *, twice: bool = False, fail: bool = False) -> Tensor:
        x = self.conv(x)
        if twice:
            x = self.conv(x)
        if fail:
            raise RuntimeError("in the middle")
        out = self.block(x)
        x.zero_()  # what an in-place activation after a tap does
        return out["maps"][0] + x


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )


@pytest.fixture
def net() -> Net:
    return Net()


ONES = torch.ones(1, 2)


def test_selectors_walk_lists_tuples_and_dictionaries(net: Net) -> None:
    paths = ["conv", "block.1[maps][0]", "block.1[maps][1][0]", "block.1[maps][1][1]"]
    with torch.no_grad(), Taps(net, paths, detach=True) as taps:
        net(ONES)
    captured = taps.take()
    assert list(captured) == paths
    assert [tensor.tolist() for tensor in captured.values()] == [[[n, n]] for n in (1.0, 2.0, 3.0, 4.0)]


def test_a_later_in_place_operation_changes_nothing(net: Net) -> None:
    with torch.no_grad(), Taps(net, ["conv"], detach=False) as taps:
        net(ONES)
    assert taps.take()["conv"].tolist() == [[1.0, 1.0]]  # and not the zeros that x.zero_() left


def test_student_taps_carry_gradients_and_teacher_taps_do_not(net: Net) -> None:
    for detach in (False, True):
        with Taps(net, ["block.1[maps][1][0]"], detach=detach) as taps:
            net(ONES)
        tensor = taps.take()["block.1[maps][1][0]"]
        assert tensor.requires_grad is not detach
        if not detach:
            tensor.sum().backward()
            assert net.conv.weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_hooks_are_gone_after_the_context_and_after_an_exception(net: Net) -> None:
    attributes = set(vars(net)) | set(vars(net.conv))
    with Taps(net, ["conv", "block.1[maps][0]"], detach=True):
        assert hooks_of(net) == 2
        net(ONES)
    assert hooks_of(net) == 0
    with pytest.raises(RuntimeError, match="in the middle"), Taps(net, ["conv"], detach=True) as taps:
        net(ONES, fail=True)
    assert hooks_of(net) == 0
    assert taps.take() == {}  # what was captured before the failure is let go
    assert set(vars(net)) | set(vars(net.conv)) == attributes
    before = taps.take()
    net(ONES)
    assert taps.take() == before == {}


def test_taps_are_handed_over_once_and_can_be_entered_again(net: Net) -> None:
    taps = Taps(net, ["conv", "conv"], detach=True)
    for value in (1.0, 5.0):
        with taps:
            net(ONES * value)
        assert taps.take()["conv"].tolist() == [[value, value]]
        assert taps.take() == {}


def test_a_tap_must_fire_exactly_once(net: Net) -> None:
    with Taps(net, ["conv"], detach=True) as taps:
        net(ONES, twice=True)
    with pytest.raises(UsageError, match=r"tap 'conv' of the model fired 2 times in one forward pass, expected once"):
        taps.take()
    with Taps(net, ["conv"], detach=True) as taps:
        pass
    with pytest.raises(UsageError, match=r"tap 'conv' of the model fired 0 times"):
        taps.take()


def test_unknown_paths_suggest_known_ones(net: Net) -> None:
    with pytest.raises(UsageError, match=r"tap 'conf': the student has no module 'conf'\. Did you mean 'conv'\?"):
        Taps(net, ["conf"], detach=True, role="student")
    with pytest.raises(UsageError, match=r"no module 'pts_neck'\. It has: conv, block"):
        Taps(net, ["pts_neck"], detach=True)


@pytest.mark.parametrize("path", ["", "conv[", "conv[0]x", "conv[a-b]", "[0]"])
def test_malformed_paths_are_refused(net: Net, path: str) -> None:
    with pytest.raises(UsageError, match="is malformed"):
        Taps(net, [path], detach=True)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("block.1", r"gives a dict with keys \['maps', 'count', 'nothing'\], not a tensor: add a step"),
        ("block.1[maps]", "gives a list of length 2, not a tensor"),
        ("block.1[count]", "gives a int, not a tensor"),
        ("block.1[mops]", r"\[mops\] does not fit an output of a dict with keys .* Did you mean 'maps'\?"),
        ("block.1.mops", r"'block.1' has no module 'mops'.*\[mops\] does not fit .* Did you mean 'maps'\?"),
        ("block.2", r"'block' has no module '2'.*\[2\] does not fit an output of a dict"),
        ("block.1[nothing]", r"gives None, not a tensor$"),
        ("conv.weigth", r"'conv' has no module 'weigth'.*does not fit an output of a tensor of shape \[1, 2\]"),
        ("conv.shape", r"\[shape\] does not fit an output of a tensor"),
        ("block.1[maps][2]", r"\[2\] does not fit an output of a list of length 2"),
        ("block.1[maps][x]", r"\[x\] does not fit an output of a list"),
    ],
)
def test_selectors_that_do_not_fit_say_what_is_there(net: Net, path: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem), Taps(net, [path], detach=True):
        net(ONES)
    assert hooks_of(net) == 0
