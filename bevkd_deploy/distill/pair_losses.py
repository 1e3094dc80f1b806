"""The classic losses as terms of a recipe: with the projector or the pooling that each needs between two BEV maps."""

from __future__ import annotations

from torch import Tensor, nn

from bevkd_deploy.distill.losses.classic import (
    AttentionTransferLoss,
    CorrelationCongruenceLoss,
    HintLoss,
    NeuronSelectivityLoss,
    ProbabilisticTransferLoss,
    RelationalLoss,
    SimilarityPreservingLoss,
    VariationalInformationLoss,
)
from bevkd_deploy.distill.losses.info_nce import InfoNCELoss
from bevkd_deploy.distill.losses.nt_xent import NTXentLoss
from bevkd_deploy.distill.projectors import Projector

#: Size of the two embeddings of correlation congruence, as in RepDistiller.
_EMBEDDING_CHANNELS = 128


class ProjectedLoss(nn.Module):
    """A loss on maps of equal channels, after a student-side projector."""

    def __init__(self, loss: nn.Module, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.projector = Projector(student_channels, teacher_channels)
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps [B, Cs, Y, X] and [B, Ct, Y, X] -> scalar."""
        value: Tensor = self.loss(self.projector(student), teacher)
        return value


class VectorLoss(nn.Module):
    """A loss on one vector a frame, the mean over cells; `embed_s` and `embed_t` bring both to one size."""

    def __init__(self, loss: nn.Module, embed_s: nn.Module | None = None, embed_t: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.embed_s = embed_s or nn.Identity()
        self.embed_t = embed_t or nn.Identity()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps [B, Cs, Y, X] and [B, Ct, Y, X] -> scalar."""
        value: Tensor = self.loss(
            self.embed_s(student.float().mean((2, 3))), self.embed_t(teacher.float().mean((2, 3)))
        )
        return value


def build_pair_loss(name: str, student_channels: int, teacher_channels: int) -> nn.Module:
    """A loss called with two maps [B, Cs, Y, X] and [B, Ct, Y, X].

    Args:
        name: as in `distill.losses.pairs[].loss`.
        student_channels: Cs.
        teacher_channels: Ct.
    """
    widths = student_channels, teacher_channels
    match name:
        case "hint":
            return ProjectedLoss(HintLoss(), *widths)
        case "attention":
            return AttentionTransferLoss()
        case "similarity":
            return SimilarityPreservingLoss()
        case "variational":
            return VariationalInformationLoss(student_channels, teacher_channels, teacher_channels)
        case "neuron_selectivity":
            return NeuronSelectivityLoss()
        case "correlation":
            embeddings = [nn.Linear(width, _EMBEDDING_CHANNELS) for width in widths]
            return VectorLoss(CorrelationCongruenceLoss(), *embeddings)
        case "relational":
            return VectorLoss(RelationalLoss())
        case "probabilistic":
            return VectorLoss(ProbabilisticTransferLoss())
        case "info_nce":
            return VectorLoss(InfoNCELoss(), nn.Linear(*widths))
        case "nt_xent":
            return VectorLoss(NTXentLoss(), nn.Linear(*widths))
    raise ValueError(f"no pair loss named {name}")
