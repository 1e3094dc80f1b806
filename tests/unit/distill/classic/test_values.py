"""Small cases of the classic losses, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bevkd_deploy.distill.losses.classic import (
    ActivationBoundaryLoss,
    AttentionTransferLoss,
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


def close(expected: float) -> object:
    return pytest.approx(expected, rel=1e-6)


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_kd_softens_both_sides_and_restores_the_gradient_scale() -> None:
    # At T = 2 the logits 2 ln 3 and 0 are probabilities 3/4 and 1/4; the student says 1/2 and 1/2.
    student, teacher = double([[0.0, 0.0], [0.0, 0.0]]), double([[2 * math.log(3), 0.0], [0.0, 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert KLDivergenceLoss(2.0)(student, teacher).item() == close(divergence * 4 / 2)


def test_hint_is_the_mean_square() -> None:
    assert HintLoss()(double([[1.0, 2.0]]), double([[0.0, 4.0]])).item() == close((1 + 4) / 2)


def test_attention_and_factor_of_two_cells() -> None:
    # Energies per cell: student 1 and 0 -> (1, 0); teacher 9 and 16, of length sqrt(337).
    student, teacher = double([[[[1.0, 0.0]]]]), double([[[[3.0, 4.0]]]])
    first, second = 1 - 9 / math.sqrt(337), 16 / math.sqrt(337)
    assert AttentionTransferLoss()(student, teacher).item() == close((first**2 + second**2) / 2)
    assert FactorTransferLoss()(student, teacher).item() == close((first + second) / 2)
    assert FactorTransferLoss(p1=1, p2=2)(student, teacher).item() == close((0.4**2 + 0.8**2) / 2)
    assert AttentionTransferLoss(p=1)(student, teacher).item() == close((0.4**2 + 0.8**2) / 2)


def test_similarity_of_two_samples() -> None:
    # Orthogonal samples: the identity. Equal samples: rows (1, 1) / sqrt(2).
    student, teacher = double([[1.0, 0.0], [0.0, 5.0]]), double([[1.0, 1.0], [1.0, 1.0]])
    side = 1 / math.sqrt(2)
    assert SimilarityPreservingLoss()(student, teacher).item() == close((2 * (1 - side) ** 2 + 2 * side**2) / 4)


def test_correlation_pairs_neighbours_only() -> None:
    error = double([[1.0, -2.0], [3.0, 1.0], [0.0, -1.0]])
    teacher = double([[5.0, 5.0]] * 3)
    assert CorrelationCongruenceLoss()(teacher + error, teacher).item() == close(((3 + 2) + (0 + 1)) / 2)


def test_variational_information_of_one_cell() -> None:
    loss = VariationalInformationLoss(1, 1, 1, init_pred_var=2.0)
    with torch.no_grad():
        for weight in loss.regressor.parameters():
            weight.fill_(2.0)
    value = loss(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 1.0))
    assert value.item() == close(((8 * 0.5 - 1) ** 2 / 2 + math.log(2)) / 2)
    unseen = loss(torch.full((1, 1, 1, 1), -0.5), torch.full((1, 1, 1, 1), 1.0))  # stopped by the ReLU
    assert unseen.item() == close((1 / 2 + math.log(2)) / 2)


def test_relations_of_three_samples_on_a_line() -> None:
    # Distances 1, 1, 2 (mean 4/3) against an equilateral triangle, where all are 1 relative to their mean.
    student = double([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    teacher = double([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    distance = (4 * 0.5 * 0.25**2 + 2 * 0.5 * 0.5**2) / 9
    # Cosines: 1, -1, 1 at the three corners of the line, 1/2 everywhere in the triangle; two of each.
    angle = 2 * (2 * 0.5 * 0.5**2 + (1.5 - 0.5)) / 27
    assert RelationalLoss(1.0, 0.0)(student, teacher).item() == close(distance)
    assert RelationalLoss(0.0, 1.0)(student, teacher).item() == close(angle)
    assert RelationalLoss()(student, teacher).item() == close(25 * distance + 50 * angle)
    assert RelationalLoss()(7 * student + 3, student) < 1e-12


def test_neighbours_of_two_samples() -> None:
    # Opposite samples are no neighbours (0), orthogonal ones half (1/2): rows (1, 0) and (2/3, 1/3).
    student, teacher = double([[1.0, 0.0], [0.0, 2.0]]), double([[1.0, 0.0], [-3.0, 0.0]])
    expected = 2 * (math.log(1 / (2 / 3))) / 4
    assert ProbabilisticTransferLoss()(student, teacher).item() == pytest.approx(expected, abs=1e-5)


def test_neuron_selectivity_ignores_the_order_and_length_of_channels() -> None:
    teacher = double([[[[1.0, 0.0]], [[0.0, 3.0]]]])
    student = double([[[[0.0, 2.0]], [[5.0, 0.0]]]])
    assert NeuronSelectivityLoss()(student, teacher).abs() < 1e-15
    # Kernel means: of the teacher 1/2, of one diagonal channel 1, between them 1/2.
    assert NeuronSelectivityLoss()(double([[[[1.0, 1.0]]]]), teacher).item() == close(0.5 + 1 - 2 * 0.5)


def test_boundaries_count_only_what_is_not_safely_on_the_right_side() -> None:
    student = double([[0.5, -2.0, 0.5, -2.0, 1.5, -0.5]])
    teacher = double([[1.0, 1.0, -1.0, -1.0, 1.0, 0.0]])
    squares = 0.5**2 + 3**2 + 1.5**2 + 0 + 0 + 0.5**2
    value = ActivationBoundaryLoss(3)([student] * 3, [teacher] * 3)
    assert value.tolist() == [close(squares * 0.003 * share) for share in (0.25, 0.5, 1)]
    assert ActivationBoundaryLoss(1, margin=0.0)([student], [teacher]).item() == close((4 + 0.25) * 0.003)
    assert ActivationBoundaryLoss(1)([3 * teacher.sign()], [teacher]).item() == close(0.003)  # the entry at 0


def test_flow_between_two_maps() -> None:
    first, second = double([[[[1.0, 2.0]], [[0.0, 1.0]]]]), double([[[[3.0, 5.0]]]])
    nothing = torch.zeros_like(second)
    # Means over the two cells of first * second: (3 + 10) / 2 and (0 + 5) / 2.
    value = FlowOfSolutionLoss()([first, second], [first, nothing])
    assert value.tolist() == [close((6.5**2 + 2.5**2) / 2)]
    assert FlowOfSolutionLoss()([first, second, second], [first, nothing, nothing]).shape == (2,)
