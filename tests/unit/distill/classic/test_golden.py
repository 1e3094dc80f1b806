"""The classic losses against the values that RepDistiller's own code gives in float64.

Source of the numbers: HobbitLong/RepDistiller, commit b84f547, on sines and cosines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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
    VariationalInformationLoss,
)

#: Outside the repository, beside the checkout.
_FILE = Path(__file__).resolve().parents[4] / "../shared/golden/repdistiller.json"

PUBLISHED = {
    "KD T=4 (logits 5*S,5*C 4x10)": 8.738137691,
    "KD T=1": 3.81538983,
    "Hint MSE": 1.00867106,
    "AT p=2 same size": 0.003502779363,
    "AT p=2 t=(4,12,3,3)": 0.0002896842229,
    "SP": 0.478495512,
    "CC (vec 4x16)": 9.338525516,
    "RKD wd25 wa50": 16.51047132,
    "PKT": 0.05408040334,
    "NST": 1.132674192,
    "FT p1=2 p2=1": 0.05258118664,
    "FSP ([fs,fs2])": 0.009007783321,
    "AB[0]": 0.6505114073,
    "AB[1]": 1.301022815,
    "VID (regressor w=.1 sin(.7 i))": 0.8548060836,
    "CRD call 1": 7.148374654,
    "Z_v1": 68.59712735,
    "Z_v2": 93.91132932,
    "mem_v1.sum after": 3.52302337,
    "mem_v2.sum after": -5.817060611,
    "CRD call 2 (same inputs)": 9.952147043,
}


def near(name: str) -> object:
    return pytest.approx(PUBLISHED[name], rel=1e-7, abs=1e-7)


def wave(function: Callable[[Tensor], Tensor], rate: float, *shape: int) -> Tensor:
    return function(rate * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)


def sine(*shape: int) -> Tensor:
    return wave(torch.sin, 0.37, *shape)


def cosine(*shape: int) -> Tensor:
    return wave(torch.cos, 0.53, *shape)


STUDENT_MAP, TEACHER_MAP = sine(4, 8, 6, 6), cosine(4, 8, 6, 6)
STUDENT_ROWS, TEACHER_ROWS = sine(4, 16), cosine(4, 16)


def test_these_are_the_published_numbers() -> None:
    if not _FILE.is_file():
        pytest.skip("the file of published values is not on this machine")
    assert json.loads(_FILE.read_text())["values"] == PUBLISHED


@pytest.mark.parametrize(
    ("name", "loss", "student", "teacher"),
    [
        ("KD T=4 (logits 5*S,5*C 4x10)", KLDivergenceLoss(4.0), 5 * sine(4, 10), 5 * cosine(4, 10)),
        ("KD T=1", KLDivergenceLoss(1.0), 5 * sine(4, 10), 5 * cosine(4, 10)),
        ("Hint MSE", HintLoss(), STUDENT_MAP, TEACHER_MAP),
        ("AT p=2 same size", AttentionTransferLoss(), STUDENT_MAP, TEACHER_MAP),
        ("AT p=2 t=(4,12,3,3)", AttentionTransferLoss(2), STUDENT_MAP, cosine(4, 12, 3, 3)),
        ("SP", SimilarityPreservingLoss(), STUDENT_MAP, TEACHER_MAP),
        ("CC (vec 4x16)", CorrelationCongruenceLoss(), STUDENT_ROWS, TEACHER_ROWS),
        ("RKD wd25 wa50", RelationalLoss(), STUDENT_ROWS, TEACHER_ROWS),
        ("PKT", ProbabilisticTransferLoss(), STUDENT_ROWS, TEACHER_ROWS),
        ("NST", NeuronSelectivityLoss(), STUDENT_MAP, TEACHER_MAP),
        ("FT p1=2 p2=1", FactorTransferLoss(), STUDENT_MAP, TEACHER_MAP),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_one_pair(name: str, loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    value = loss(student, teacher)
    assert value.dtype == torch.float64 and value.shape == ()
    assert value.item() == near(name)


def test_adjacent_maps() -> None:
    student, teacher = [STUDENT_MAP, sine(4, 8, 3, 3)], [TEACHER_MAP, cosine(4, 8, 3, 3)]
    assert FlowOfSolutionLoss()(student, teacher).tolist() == [near("FSP ([fs,fs2])")]


def test_boundaries_of_two_maps() -> None:
    values = ActivationBoundaryLoss(2)([STUDENT_MAP, STUDENT_MAP], [TEACHER_MAP, TEACHER_MAP])
    assert values.tolist() == [near("AB[0]"), near("AB[1]")]


def test_variational_information() -> None:
    loss = VariationalInformationLoss(8, 8, 8).double()
    with torch.no_grad():
        for weight in loss.regressor.parameters():
            weight.copy_(0.1 * wave(torch.sin, 0.7, *weight.shape))
    assert loss(STUDENT_MAP, TEACHER_MAP).item() == near("VID (regressor w=.1 sin(.7 i))")


def test_two_steps_of_contrast_with_banks() -> None:
    loss = ContrastiveRepresentationLoss(16, 16, 8, 32, 6, 0.07, 0.5).double()
    memory = loss.contrast
    with torch.no_grad():
        for embed, rate in ((loss.embed_s, 0.9), (loss.embed_t, 1.3)):
            embed.linear.weight.copy_(wave(torch.sin, rate, 8, 16))
            embed.linear.bias.zero_()
        memory.memory_v1.copy_(wave(torch.sin, 0.21, 32, 8) / math.sqrt(8 / 3))
        memory.memory_v2.copy_(wave(torch.cos, 0.17, 32, 8) / math.sqrt(8 / 3))
    index = torch.tensor([0, 5, 9, 31])
    negatives = [[(3 * j + 7 * i + 1) % 32 for j in range(6)] for i in range(4)]
    contrast_index = torch.cat([index[:, None], torch.tensor(negatives)], dim=1)
    assert loss(STUDENT_ROWS, TEACHER_ROWS, index, contrast_index).item() == near("CRD call 1")
    assert (memory.z_v1.item(), memory.z_v2.item()) == (near("Z_v1"), near("Z_v2"))
    sums = memory.memory_v1.sum().item(), memory.memory_v2.sum().item()
    assert sums == (near("mem_v1.sum after"), near("mem_v2.sum after"))
    assert loss(STUDENT_ROWS, TEACHER_ROWS, index, contrast_index).item() == near("CRD call 2 (same inputs)")
    assert (memory.z_v1.item(), memory.z_v2.item()) == (near("Z_v1"), near("Z_v2"))
