"""The classic distillation losses, equal to RepDistiller's (commit b84f547): unweighted, `loss(student, teacher)`.

Each works in at least single precision under any autocast and gives no gradient to the teacher.
"""

from bevkd_deploy.distill.losses.classic.activation_boundary import ActivationBoundaryLoss
from bevkd_deploy.distill.losses.classic.attention_transfer import AttentionTransferLoss
from bevkd_deploy.distill.losses.classic.contrast_index import ClassNegatives
from bevkd_deploy.distill.losses.classic.contrastive_representation import ContrastiveRepresentationLoss
from bevkd_deploy.distill.losses.classic.correlation_congruence import CorrelationCongruenceLoss
from bevkd_deploy.distill.losses.classic.factor_transfer import FactorTransferLoss
from bevkd_deploy.distill.losses.classic.flow_of_solution import FlowOfSolutionLoss
from bevkd_deploy.distill.losses.classic.hint import HintLoss
from bevkd_deploy.distill.losses.classic.kl_divergence import KLDivergenceLoss
from bevkd_deploy.distill.losses.classic.neuron_selectivity import NeuronSelectivityLoss
from bevkd_deploy.distill.losses.classic.probabilistic_transfer import ProbabilisticTransferLoss
from bevkd_deploy.distill.losses.classic.relational import RelationalLoss
from bevkd_deploy.distill.losses.classic.similarity_preserving import SimilarityPreservingLoss
from bevkd_deploy.distill.losses.classic.singular_vector import SingularVectorLoss
from bevkd_deploy.distill.losses.classic.variational_information import VariationalInformationLoss

__all__ = [
    "ActivationBoundaryLoss",
    "AttentionTransferLoss",
    "ClassNegatives",
    "ContrastiveRepresentationLoss",
    "CorrelationCongruenceLoss",
    "FactorTransferLoss",
    "FlowOfSolutionLoss",
    "HintLoss",
    "KLDivergenceLoss",
    "NeuronSelectivityLoss",
    "ProbabilisticTransferLoss",
    "RelationalLoss",
    "SimilarityPreservingLoss",
    "SingularVectorLoss",
    "VariationalInformationLoss",
]
