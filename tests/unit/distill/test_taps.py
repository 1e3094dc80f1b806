"""Taps: what they capture, what they say, and that they leave nothing behind."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.distill.taps import TapPath, Taps


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


def test_the_only_item_of_a_list_needs_no_step() -> None:
    """Necks of mmdet3d return a list of their one map; a recipe's `pts_neck` names it whatever network it is of."""

    class Neck(torch.nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x + 1]

    net = torch.nn.Sequential(OrderedDict(pts_neck=Neck(), head=torch.nn.Identity()))
    with Taps(net, ["pts_neck", "pts_neck[0]"], detach=True) as taps:
        net(ONES)
    assert [tensor.tolist() for tensor in taps.take().values()] == [[[2.0, 2.0]], [[2.0, 2.0]]]


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


class Level(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Head(nn.Module):
    """What a TransFusion head of mmdet3d returns: a tuple of lists of dicts; and an object with attributes."""

    Found = namedtuple("Found", "dense_heatmap boxes")

    def forward(self, x: Tensor) -> Any:
        return ([{"dense_heatmap": x * 5, "rows": SimpleNamespace(features=x * 6)}],)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Level() for _ in range(3)])
        self.bbox_head = Head()
        self.named = NamedHead()

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            block(x)
        self.named(x)
        return self.bbox_head(x)


class NamedHead(nn.Module):
    def forward(self, x: Tensor) -> Head.Found:
        return Head.Found(x * 7, x * 8)


def names_of(model: nn.Module, *paths: Any) -> list[str]:
    return [name for names in Taps(model, paths, detach=True).names.values() for name in names]


def test_a_pattern_names_every_module_that_fits() -> None:
    model = Pyramid()
    blocks = ["blocks.0", "blocks.1", "blocks.2"]
    assert names_of(model, {"path": "blocks.*", "count": 3}) == blocks
    assert names_of(model, {"path": "b*s.?", "count": 3}) == blocks
    assert names_of(model, {"path": "blocks.*.conv", "count": 3}) == [f"{block}.conv" for block in blocks]
    assert names_of(model, {"path": "**.conv", "count": 3}) == [f"{block}.conv" for block in blocks]
    assert names_of(model, {"path": "blocks.**", "count": 6}) == [
        name for block in blocks for name in (block, f"{block}.conv")
    ]
    assert names_of(model, {"path": "**.blocks", "count": 1}) == ["blocks"]
    assert names_of(model, {"path": "*head[0]", "count": 1}) == ["bbox_head[0]"]
    assert names_of(model, "blocks.1", TapPath("blocks.?.conv", 3))[0] == "blocks.1"
    with torch.no_grad(), Taps(model, [TapPath("blocks.*", 3), "blocks.1"], detach=True) as taps:
        model(ONES)
    assert list(taps.take()) == blocks  # once each, although blocks.1 is named twice


def test_a_pattern_needs_a_count_and_it_must_be_right() -> None:
    model = Pyramid()
    listed = "blocks.0, blocks.1, blocks.2"
    with pytest.raises(
        UsageError, match=rf"'blocks\.\*' is a pattern, so its count .* matches 3 in the teacher: {listed}"
    ):
        Taps(model, ["blocks.*"], detach=True, role="teacher")
    with pytest.raises(UsageError, match=rf"'blocks\.\*' must match 2, but matches 3 in the model: {listed}"):
        Taps(model, [{"path": "blocks.*", "count": 2}], detach=True)
    with pytest.raises(UsageError, match=r"'blocks\.0' must match 2, but matches 1 in the model: blocks\.0"):
        Taps(model, [{"path": "blocks.0", "count": 2}], detach=True)
    with pytest.raises(UsageError, match=r"'blcks\.\*': the model has no module"):
        Taps(model, [{"path": "blcks.*", "count": 3}], detach=True)
    with pytest.raises(UsageError, match=r"'bbox_head\.\*': the model has no module"):  # a wildcard is never a key
        Taps(model, [{"path": "bbox_head.*", "count": 1}], detach=True)
    many = nn.ModuleList([nn.Identity() for _ in range(20)])
    with pytest.raises(UsageError, match=r"matches 20 in the model: 0, 1, .*, 11 and 8 more"):
        Taps(many, ["*"], detach=True)


def test_what_a_tap_can_be_written_as() -> None:
    assert TapPath.parse("pts_neck") == TapPath("pts_neck") == TapPath.parse({"path": "pts_neck"})
    assert TapPath.parse({"path": "a.*", "count": 2}) == TapPath("a.*", 2)
    with pytest.raises(UsageError, match=r"a mapping of path and count, got the keys \['number', 'path'\]"):
        TapPath.parse({"path": "a.*", "number": 2})
    with pytest.raises(UsageError, match="count must be at least 1, got 0"):
        TapPath("a.*", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("bbox_head[0][0].dense_heatmap", 5.0),
        ("bbox_head[0][0][dense_heatmap]", 5.0),
        ("bbox_head.dense_heatmap", 5.0),  # through a tuple and a list of one element
        ("bbox_head[dense_heatmap]", 5.0),
        ("bbox_head.rows.features", 6.0),
        ("named.dense_heatmap", 7.0),
        ("named[1]", 8.0),
        ("named.boxes", 8.0),
    ],
)
def test_keys_and_attributes_of_an_output(path: str, value: float) -> None:
    model = Pyramid()
    with torch.no_grad(), Taps(model, [path], detach=True) as taps:
        model(ONES)
    assert taps.take()[path].tolist() == [[value, value]]


def test_a_module_goes_before_a_key_of_the_same_name() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heatmap = nn.Identity()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"heatmap": self.heatmap(x) * 9}

    model = nn.Sequential(OrderedDict(bbox_head=Both()))
    with torch.no_grad(), Taps(model, ["bbox_head.heatmap", "bbox_head[heatmap]"], detach=True) as taps:
        model(ONES)
    assert [tensor.tolist() for tensor in taps.take().values()] == [[[1.0, 1.0]], [[9.0, 9.0]]]


def test_every_firing_is_kept_in_order(net: Net) -> None:
    with torch.no_grad(), Taps(net, ["conv"], detach=True) as taps:
        net(ONES, twice=True)
        net(ONES * 2)
    assert [tensor.tolist() for tensor in taps.firings()["conv"]] == [[[1.0, 1.0]], [[1.0, 1.0]], [[2.0, 2.0]]]
    assert taps.firings() == {}


def test_a_container_that_is_never_called_is_said_to_be_one() -> None:
    model = Pyramid()
    with torch.no_grad(), Taps(model, ["blocks"], detach=True) as taps:
        model(ONES)
    with pytest.raises(UsageError, match=r"'blocks' of the model fired 0 times.*a ModuleList is never.*blocks\.\*"):
        taps.take()


def test_taps_cannot_be_opened_twice_at_once(net: Net) -> None:
    taps = Taps(net, ["conv"], detach=True)
    with taps, pytest.raises(UsageError, match="open already"):
        taps.__enter__()
    assert hooks_of(net) == 0


def test_a_module_replaced_after_the_taps_were_made_is_found(net: Net) -> None:
    taps = Taps(net, ["conv"], detach=True)
    net.conv = nn.Linear(2, 2, bias=False)
    with torch.no_grad(), taps:
        net(ONES)
    assert taps.take()["conv"].tolist() == net.conv(ONES).tolist()
