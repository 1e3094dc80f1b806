"""CRD beyond its published values: banks, resuming, negatives, precision, and no waiting for the device."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.classic import ClassNegatives, ContrastiveRepresentationLoss

N_DATA, NEGATIVES = 12, 5
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 0, 1, 2, 2])


def make_loss(dtype: torch.dtype = torch.float64) -> ContrastiveRepresentationLoss:
    torch.manual_seed(1)
    return ContrastiveRepresentationLoss(6, 9, 4, N_DATA, NEGATIVES).to(dtype)


def step(loss: ContrastiveRepresentationLoss, seed: int, batch: int = 3) -> Tensor:
    torch.manual_seed(seed)
    dtype = loss.contrast.memory_v1.dtype
    index = torch.randperm(N_DATA)[:batch]
    contrast_index = ClassNegatives(LABELS, NEGATIVES).draw(index)
    return loss(torch.randn(batch, 6, dtype=dtype), torch.randn(batch, 9, dtype=dtype), index, contrast_index)


def test_one_sample_and_one_negative_by_hand() -> None:
    loss = ContrastiveRepresentationLoss(2, 2, 2, n_data=3, negatives=1, temperature=0.5, momentum=0.75).double()
    with torch.no_grad():
        for embed in (loss.embed_s, loss.embed_t):
            embed.linear.weight.copy_(torch.eye(2))
            embed.linear.bias.zero_()
        loss.contrast.memory_v1.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
        loss.contrast.memory_v2.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.8, 0.6]]))
    student, teacher = torch.tensor([[0.0, 2.0]]).double(), torch.tensor([[3.0, 0.0]]).double()
    value = loss(student, teacher, torch.tensor([2]), torch.tensor([[2, 0]]))
    # Unit vectors (0, 1) and (1, 0); cosines with the banks' rows 2 and 0, divided by 0.5, exponentiated.
    of_student = [math.exp(0.6 / 0.5), math.exp(1.0 / 0.5)]
    of_teacher = [math.exp(0.6 / 0.5), math.exp(1.0 / 0.5)]
    expected = 0.0
    for scores, name in ((of_student, "z_v1"), (of_teacher, "z_v2")):
        constant = sum(scores) / 2 * 3
        assert getattr(loss.contrast, name).item() == pytest.approx(constant)
        positive, negative = (score / constant for score in scores)
        expected -= math.log(positive / (positive + 1 / 3)) + math.log((1 / 3) / (negative + 1 / 3))
    assert value.item() == pytest.approx(expected, rel=1e-6)
    moved = torch.tensor([0.75 * 0.6, 0.75 * 0.8 + 0.25]).double()  # after scoring, row 2 alone
    assert torch.allclose(loss.contrast.memory_v1[2], moved / moved.norm())
    assert loss.contrast.memory_v1[:2].tolist() == [[1, 0], [0, 1]]
    moved = torch.tensor([0.75 * 0.8 + 0.25, 0.75 * 0.6]).double()
    assert torch.allclose(loss.contrast.memory_v2[2], moved / moved.norm())


@pytest.mark.parametrize("batch", [1, 3])
def test_gradient(batch: int) -> None:
    loss = make_loss()
    step(loss, 0)  # fixes the constants, which are no function of the student afterwards
    loss.eval()
    index, contrast_index = torch.tensor([3, 7, 1])[:batch], torch.randint(N_DATA, (batch, NEGATIVES + 1))
    student = torch.randn(batch, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(batch, 9, dtype=torch.float64, requires_grad=True)
    value = loss(student, teacher, index, contrast_index)
    value.backward()
    assert value.shape == () and student.grad.any() and teacher.grad is None
    assert all(parameter.grad.any() for parameter in loss.parameters())  # both embeddings learn
    assert torch.autograd.gradcheck(lambda given: loss(given, teacher.detach(), index, contrast_index), (student,))


def test_the_banks_change_after_scoring_and_before_the_backward_pass() -> None:
    """The gradient is that of the banks that were scored, though they have moved on since."""
    loss = make_loss()
    step(loss, 0)
    frozen = copy.deepcopy(loss).eval()
    for one in (loss, frozen):
        one.zero_grad()
        step(one, 5).backward()
    assert not torch.equal(loss.contrast.memory_v1, frozen.contrast.memory_v1)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(loss.parameters(), frozen.parameters(), strict=True))


def test_evaluation_leaves_banks_and_constants() -> None:
    loss = make_loss().eval()
    before = copy.deepcopy(loss.state_dict())
    assert step(loss, 0).isfinite()
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    assert before["contrast.z_v1"] == -1


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_going_on_from_a_copy_is_bit_equal(way: str) -> None:
    loss = make_loss(torch.float32)
    step(loss, 0).backward()
    if way == "state_dict":
        other = ContrastiveRepresentationLoss(6, 9, 4, N_DATA, NEGATIVES)
        other.load_state_dict(copy.deepcopy(loss.state_dict()))
    else:
        other = copy.deepcopy(loss) if way == "deepcopy" else pickle.loads(pickle.dumps(loss))
    for seed in (1, 2):
        assert torch.equal(step(loss, seed), step(other, seed))
    assert all(torch.equal(a, b) for a, b in zip(loss.buffers(), other.buffers(), strict=True))
    assert len(list(loss.buffers())) == 4


def test_half_precision_stays_finite_and_exact() -> None:
    torch.manual_seed(0)
    index, contrast_index = torch.tensor([0, 1, 2]), torch.randint(N_DATA, (3, NEGATIVES + 1))
    student, teacher = (300 * torch.randn(3, 6)).half(), (300 * torch.randn(3, 9)).half()
    single, half = make_loss(torch.float32), make_loss(torch.float32)
    with torch.no_grad():
        for loss in (single, half):  # a positive pair as alike as can be: exp(1 / 0.07) is 1.6e6
            loss.contrast.memory_v2[0] = loss.embed_s(student[:1].float())[0]
    expected = single(student.float(), teacher.float(), index, contrast_index)
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        value = half(student, teacher, index, contrast_index)
    value.backward()
    assert torch.equal(value, expected) and value.isfinite()
    assert student.grad.isfinite().all() and all(p.grad.isfinite().all() for p in half.parameters())


def test_a_step_never_asks_the_device_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = make_loss()
    index, contrast_index = torch.tensor([0, 1, 2]), torch.randint(N_DATA, (3, NEGATIVES + 1))
    student, teacher = torch.randn(3, 6).double(), torch.randn(3, 9).double()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this waits for the device")

    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for _ in range(2):
        value = loss(student, teacher, index, contrast_index)
    monkeypatch.undo()
    assert value.isfinite()


def test_negatives_have_other_classes_and_do_not_repeat() -> None:
    index = torch.arange(N_DATA)
    torch.manual_seed(0)
    drawn = ClassNegatives(LABELS, NEGATIVES).draw(index)
    assert drawn.shape == (N_DATA, NEGATIVES + 1) and drawn.dtype == torch.int64
    assert torch.equal(drawn[:, 0], index)
    assert (LABELS[drawn[:, 1:]] != LABELS[index][:, None]).all()
    assert all(len(set(row)) == NEGATIVES for row in drawn[:, 1:].tolist())
    torch.manual_seed(0)
    assert torch.equal(ClassNegatives(LABELS, NEGATIVES).draw(index), drawn)  # the generator that checkpoints keep


@pytest.mark.parametrize("negatives", [3, 40])
def test_every_sample_of_other_classes_is_drawn_in_time(negatives: int) -> None:
    torch.manual_seed(0)
    negatives_of = ClassNegatives(LABELS, negatives)
    for sample in (0, 1, 2):
        drawn = torch.cat([negatives_of.draw(torch.tensor([sample]))[0, 1:] for _ in range(200)])
        others = torch.nonzero(LABELS[sample] != LABELS).squeeze(1)
        counts = torch.bincount(drawn, minlength=N_DATA)
        assert torch.equal(torch.nonzero(counts).squeeze(1), others)
        share = counts[others] / len(drawn) * len(others)
        assert share.min() > 0.7 and share.max() < 1.3


def test_one_class_has_no_negatives() -> None:
    with pytest.raises(DistillError, match="no negatives of other classes"):
        ClassNegatives(torch.zeros(4, dtype=torch.long), 2)


def test_without_classes_negatives_come_from_everywhere() -> None:
    loss = make_loss(torch.float32)
    torch.manual_seed(0)
    first = loss(torch.randn(2, 6), torch.randn(2, 9), torch.tensor([0, 1]))
    assert first.isfinite() and (loss.contrast.z_v1 > 0)


def test_two_processes_are_one_with_the_whole_batch(two_processes: dict[str, Any]) -> None:
    whole, *ranks = (two_processes[name]["crd"] for name in ("whole", "0", "1"))
    for step_number in range(2):
        mean = sum(got["values"][step_number] for got in ranks) / 2
        assert mean.item() == pytest.approx(whole["values"][step_number].item(), rel=1e-12)
        for got in ranks:
            for mine, expected in zip(got["gradients"][step_number], whole["gradients"][step_number], strict=True):
                assert torch.allclose(mine, expected, rtol=1e-10, atol=1e-14)
    assert len(whole["buffers"]) == 4
    for name, expected in whole["buffers"].items():
        assert torch.allclose(ranks[0]["buffers"][name], expected, rtol=1e-12)
        assert torch.equal(ranks[0]["buffers"][name], ranks[1]["buffers"][name])
