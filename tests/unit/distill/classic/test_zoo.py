"""What holds for every classic loss: gradients, batch of one, equality, odd maps, half precision, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.classic import (
    ActivationBoundaryLoss,
    AttentionTransferLoss,
    ContrastiveRepresentationLoss,
    CorrelationCongruenceLoss,
    FactorTransferLoss,
    FlowOfSolutionLoss,
    HintLoss,
    KLDivergenceLoss,
    NeuronSelectivityLoss,
    ProbabilisticTransferLoss,
    RelationalLoss,
    SimilarityPreservingLoss,
    SingularVectorLoss,
    VariationalInformationLoss,
)

_INDEX = torch.arange(4)
_CONTRAST_INDEX = torch.cat([_INDEX[:, None], torch.tensor([[9, 5, 4], [6, 7, 8], [8, 9, 4], [5, 5, 6]])], dim=1)


@dataclass(frozen=True)
class Case:
    """A loss and the shapes, without the batch, of what it takes."""

    make: Callable[[], nn.Module]
    student: list[tuple[int, ...]]
    teacher: list[tuple[int, ...]]
    smallest_batch: int = 1
    zero_when_equal: bool = True
    takes_list: bool = False
    #: Of inputs whose squares float16 cannot hold.
    large: float = 300.0

    def loss(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(3)
        return self.make().to(dtype)

    def inputs(self, batch: int = 4, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Any, Any]:
        """Student and teacher; tensors, or lists of tensors."""
        torch.manual_seed(4)
        made = [[(scale * torch.randn(batch, *s)).to(dtype) for s in shapes] for shapes in (self.student, self.teacher)]
        return tuple(made) if self.takes_list else (made[0][0], made[1][0])


_MAP, _DEEP, _ROW, _LONG_ROW = (3, 5, 4), (2, 3, 2), (6,), (9,)
CASES = {
    "KD": Case(lambda: KLDivergenceLoss(2.0), [_ROW], [_ROW]),
    "Hint": Case(HintLoss, [_MAP], [_MAP]),
    "AT": Case(AttentionTransferLoss, [_MAP], [(7, 5, 4)]),
    "FT": Case(FactorTransferLoss, [_MAP], [(7, 5, 4)]),
    "SP": Case(SimilarityPreservingLoss, [_MAP], [(7, 3, 2)], smallest_batch=2),
    "CC": Case(CorrelationCongruenceLoss, [_ROW], [_ROW], smallest_batch=2),
    "CC embedded": Case(
        lambda: CorrelationCongruenceLoss(6, 9, 5), [_ROW], [_LONG_ROW], smallest_batch=2, zero_when_equal=False
    ),
    "VID": Case(lambda: VariationalInformationLoss(3, 4, 2), [_MAP], [(2, 5, 4)], zero_when_equal=False),
    "RKD": Case(RelationalLoss, [_ROW], [_LONG_ROW], smallest_batch=3),
    "PKT": Case(ProbabilisticTransferLoss, [_ROW], [_LONG_ROW], smallest_batch=2),
    "NST": Case(NeuronSelectivityLoss, [_MAP], [(7, 5, 4)]),
    "AB": Case(lambda: ActivationBoundaryLoss(2), [_MAP, _DEEP], [_MAP, _DEEP], zero_when_equal=False, takes_list=True),
    # Its value grows with the fourth power: its gradient at 300 is itself beyond float16.
    "FSP": Case(FlowOfSolutionLoss, [_MAP, _DEEP], [_MAP, (2, 5, 4)], takes_list=True, large=40.0),
    "KDSVD": Case(SingularVectorLoss, [_MAP, _DEEP], [_MAP, (2, 5, 4)], takes_list=True),
}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def tensors(value: Any) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


@every_loss
def test_gradient_is_that_of_the_value_and_none_reaches_the_teacher(case: Case) -> None:
    loss, (student, teacher) = case.loss(), case.inputs()
    leaves = [tensor.requires_grad_() for tensor in tensors(student)]
    for tensor in tensors(teacher):
        tensor.requires_grad_()
    value = loss(student, teacher).sum()
    value.backward()
    assert value.isfinite() and value != 0
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)
    assert all(tensor.grad is None for tensor in tensors(teacher))
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert torch.autograd.gradcheck(lambda *given: loss(list(given) if case.takes_list else given[0], teacher), leaves)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.zero_when_equal])
def test_equal_features_cost_nothing(name: str) -> None:
    case = CASES[name]
    _, teacher = case.inputs()
    student = copy.deepcopy(teacher)
    for tensor in tensors(student):
        tensor.requires_grad_()
    value = case.loss()(student, teacher).sum()
    value.backward()
    assert value.abs() < 1e-12
    assert all(tensor.grad.abs().max() < 1e-6 for tensor in tensors(student))


@every_loss
def test_batch_of_one(case: Case) -> None:
    loss = case.loss()
    if case.smallest_batch > 1:
        with pytest.raises(DistillError, match=r"teaches nothing at batch size 1; use at least \d"):
            loss(*case.inputs(batch=1))
    values = []
    for batch in (case.smallest_batch, case.smallest_batch + 1):
        student, teacher = case.inputs(batch)
        for tensor in tensors(student):
            tensor.requires_grad_()
        values.append(loss(student, teacher).sum())
        values[-1].backward()
        assert all(tensor.grad.isfinite().all() and tensor.grad.any() for tensor in tensors(student))
    assert all(value.isfinite() and value != 0 for value in values)


@every_loss
@pytest.mark.parametrize(
    ("given", "autocast"),
    [(torch.float16, True), (torch.float32, True), (torch.float16, False)],
    ids=["half", "single", "half without autocast"],
)
def test_half_precision_stays_finite_and_exact(case: Case, given: torch.dtype, autocast: bool) -> None:
    student, teacher = case.inputs(dtype=torch.float16, scale=case.large)
    single = [[tensor.float() for tensor in tensors(side)] for side in (student, teacher)]
    expected = case.loss(torch.float32)(*(single if case.takes_list else (single[0][0], single[1][0])))
    mine = [tensor.detach().to(given).requires_grad_() for tensor in tensors(student)]
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        value = case.loss(torch.float32)(mine if case.takes_list else mine[0], teacher)
    assert value.dtype == torch.float32
    assert value.isfinite().all() and torch.equal(value, expected)
    value.sum().backward()
    assert all(tensor.grad.dtype == given and tensor.grad.isfinite().all() for tensor in mine)


@every_loss
@pytest.mark.parametrize("fill", [0.0, 1.0], ids=["nothing", "constant"])
def test_empty_maps_have_finite_gradients(case: Case, fill: float) -> None:
    student, teacher = case.inputs(dtype=torch.float32)
    leaves = [torch.full_like(tensor, fill).requires_grad_() for tensor in tensors(student)]
    value = case.loss(torch.float32)(leaves if case.takes_list else leaves[0], teacher).sum()
    value.backward()
    assert value.isfinite() and all(leaf.grad.isfinite().all() for leaf in leaves)
    blank = [torch.full_like(tensor, fill) for tensor in tensors(teacher)]
    assert case.loss(torch.float32)(student, blank if case.takes_list else blank[0]).isfinite().all()


@every_loss
def test_copies_and_pickles_give_the_same(case: Case) -> None:
    loss, inputs = case.loss(), case.inputs()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(loss(*inputs), other(*inputs))


@pytest.mark.parametrize("name", ["AT", "FT", "NST"])
def test_the_larger_map_is_averaged_down_in_both_directions(name: str) -> None:
    loss = CASES[name].loss()
    torch.manual_seed(5)
    small, large = torch.randn(2, 3, 2, 3, dtype=torch.float64), torch.randn(2, 3, 4, 9, dtype=torch.float64)
    averaged = large.reshape(2, 3, 2, 2, 3, 3).mean(dim=(3, 5))
    assert loss(small, large).item() == pytest.approx(loss(small, averaged).item(), rel=1e-12)
    assert loss(large, small).item() == pytest.approx(loss(averaged, small).item(), rel=1e-12)


def test_flow_and_prediction_average_the_larger_map_too() -> None:
    torch.manual_seed(5)
    small, large = torch.randn(2, 3, 2, 3, dtype=torch.float64), torch.randn(2, 3, 4, 9, dtype=torch.float64)
    averaged = large.reshape(2, 3, 2, 2, 3, 3).mean(dim=(3, 5))
    flow = FlowOfSolutionLoss()
    teacher = [small.flip(0), averaged.flip(1)]
    assert torch.allclose(flow([small, large], teacher), flow([small, averaged], teacher), rtol=1e-12)
    assert torch.allclose(flow([large, small], teacher), flow([averaged, small], teacher), rtol=1e-12)
    torch.manual_seed(6)
    prediction = VariationalInformationLoss(3, 4, 3).double()
    assert prediction(large, small).item() == pytest.approx(prediction(averaged, small).item(), rel=1e-12)
    assert prediction(small, large).item() == pytest.approx(prediction(small, averaged).item(), rel=1e-12)


def test_transposing_both_maps_changes_nothing_but_one_alone_does() -> None:
    for name in ("AT", "FT", "NST", "KDSVD", "FSP"):
        case = CASES[name]
        loss, (student, teacher) = case.loss(), case.inputs()
        turned = [[tensor.transpose(2, 3) for tensor in tensors(side)] for side in (student, teacher)]
        both = loss(*(turned if case.takes_list else (turned[0][0], turned[1][0])))
        assert torch.allclose(both, loss(student, teacher), rtol=1e-9), name
    square = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert AttentionTransferLoss()(square, square.transpose(2, 3)) > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HintLoss()(torch.ones(2, 3), torch.ones(2, 4)), r"\[2, 3\] and teacher \[2, 4\].*projector"),
        (lambda: KLDivergenceLoss()(torch.ones(2, 3), torch.ones(1, 3)), "one shape"),
        (lambda: SimilarityPreservingLoss()(torch.ones(2, 3), torch.ones(3, 3)), "same samples, got 2 and 3"),
        (lambda: AttentionTransferLoss()(torch.ones(2, 3, 4), torch.ones(2, 3, 4)), r"\[B, C, H, W\], got"),
        (lambda: ActivationBoundaryLoss(2)([torch.ones(2, 3)], [torch.ones(2, 3)]), "made for 2 maps, got 1"),
        (lambda: ActivationBoundaryLoss(2)(torch.ones(2, 3), torch.ones(2, 3)), "takes a list of maps"),
        (lambda: FlowOfSolutionLoss()([torch.ones(1, 1, 2, 2)], [torch.ones(1, 1, 2, 2)]), "at least 2, got 1 and 1"),
        (lambda: FlowOfSolutionLoss([(1, 2, 4, 4)], [(1, 3, 4, 4)]), r"same channels, got \[2\], \[3\]"),
        (lambda: SingularVectorLoss()([torch.ones(1, 2, 3, 3)] * 2, [torch.ones(1, 4, 3, 3)] * 2), "got 2 and 4"),
        (lambda: VariationalInformationLoss(2, 2, 2)(*[torch.ones(1, 3, 2, 2)] * 2), "3 channels, expected 2"),
        (lambda: CorrelationCongruenceLoss(4), "both student_dim and teacher_dim"),
        (lambda: RelationalLoss()(torch.ones(2, 3), torch.ones(2, 3)), "batch size 2; use at least 3"),
        (
            lambda: ContrastiveRepresentationLoss(3, 3, 2, 9, negatives=4)(
                torch.ones(4, 3), torch.ones(4, 3), _INDEX, _CONTRAST_INDEX
            ),
            r"\[4\], \[4, 5\], got \(\[4\], \[4, 4\]\)",
        ),
    ],
)
def test_refusals_say_what_was_wrong(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        call()
