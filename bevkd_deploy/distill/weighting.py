"""How much each distillation term counts: fixed or measured weights, ramps, and terms that teach nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DeadTermError
from bevkd_deploy.contracts.recipe_distill import DistillConfig
from bevkd_deploy.distill.processes import mean_over_processes

#: Measured steps in which every term must have moved the student at least once. One batch can have nothing to teach,
#: such as frames without objects; many in a row cannot.
ALIVE_WITHIN_STEPS = 20
#: Half precision loses gradients below 6e-8: a loss is scaled up by this before its gradient is measured.
_HALF_PRECISION_SCALE = 1024.0


@dataclass
class _Measured:
    """Of one term: the calibration so far, and whether it has ever moved the student."""

    log_ratio_sum: float = 0.0
    count: int = 0
    alive: bool = False
    steps: int = 0  # in which it was on: stages switch terms
    checked: int = 0  # in which it was measured


class TermWeights(nn.Module):
    """The multiplier of each term.

    A weight given as `auto` is RATIO times the geometric mean of |gradient of detection| / |gradient of the term| over
    the calibration steps; inside that window it follows the mean so far, before it the term is off. What was measured
    is part of the state dict, so that a resumed run goes on with the same weights.
    """

    def __init__(self, config: DistillConfig) -> None:
        super().__init__()
        self.config = config
        self.given = {name: term.weight for name, term in config.losses.enabled().items()}
        self.step = 0
        self.measured = {name: _Measured() for name in self.given}

    # Plain numbers instead of buffers: read at every step, on a GPU each would make the CPU wait.
    def get_extra_state(self) -> Tensor:
        """Everything measured, float64 [1 + 5 * terms]."""
        values = [value for seen in self.measured.values() for value in astuple(seen)]
        return torch.tensor([self.step, *values], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """What `get_extra_state` gave."""
        self.step = int(state[0])
        for name, (total, count, alive, steps, checked) in zip(
            self.measured, state[1:].reshape(-1, 5).tolist(), strict=True
        ):
            self.measured[name] = _Measured(total, int(count), bool(alive), int(steps), int(checked))

    def ramp(self, progress: float) -> float:
        """Share of the weights that counts at this part of the training, 0..1."""
        if progress >= self.config.stop_fraction and self.config.stop_fraction < 1:
            return 0.0
        warmup = self.config.warmup_fraction
        return min(1.0, progress / warmup) if warmup else 1.0

    def weight(self, name: str) -> float:
        """The multiplier of a term at full ramp; 0 for an `auto` that is not measured yet."""
        given = self.given[name]
        if given.auto is None:
            assert given.fixed is not None  # the recipe schema: one of both
            return given.fixed
        seen = self.measured[name]
        return given.auto * math.exp(seen.log_ratio_sum / seen.count) if seen.count else 0.0

    def wants_norms(self, on: Iterable[str] | None = None) -> bool:
        """Whether this step's gradient norms are to be measured.

        Args:
            on: the terms of this stage; absent: all.
        """
        every = self.config.log_gradients_every
        seen = [self.measured[name] for name in (self.measured if on is None else on)]
        if not all(term.alive for term in seen) or any(self._calibrates(term) for term in seen):
            return True
        return bool(seen and every and self.step % every == 0)

    def observe(self, norms: dict[str, float], detection_norm: float) -> None:
        """Take in the gradient norms of a step: for the calibration, and to find terms that teach nothing.

        Args:
            norms: by term, unweighted; of the terms that are on.
            detection_norm: of the detection loss.

        Raises:
            DeadTermError: a term has not had a gradient in any of the steps measured so far.
        """
        for name, seen in self.measured.items():
            if name not in norms:
                continue
            seen.checked += 1
            if not norms[name] > 0:
                continue
            seen.alive = True
            if self._calibrates(seen) and detection_norm > 0:
                seen.log_ratio_sum += math.log(detection_norm / norms[name])
                seen.count += 1
        late = [name for name, seen in self.measured.items() if seen.checked >= ALIVE_WITHIN_STEPS]
        dead = [name for name in late if not self.measured[name].alive]
        if dead:
            raise DeadTermError(
                f"distillation term{'s' * (len(dead) > 1)} {', '.join(dead)}: no gradient on the student in the first "
                f"{ALIVE_WITHIN_STEPS} steps. Choose other taps, check that teacher and student see the same objects, "
                f"or switch it off: distill.losses.{dead[0]}=null"
            )

    def advance(self, on: Iterable[str] | None = None) -> None:
        """One forward pass of a training is over, with some terms on (absent: all)."""
        self.step += 1
        for name in self.measured if on is None else on:
            self.measured[name].steps += 1

    def _calibrates(self, seen: _Measured) -> bool:
        """Whether a term is in the steps, counted while it is on, in which weights are measured."""
        window = self.config.calibration
        is_auto = any(given.auto is not None for given in self.given.values())
        return is_auto and window.first_step <= seen.steps < window.first_step + window.steps


def gradient_norms(losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> dict[str, float]:
    """Euclidean norm of each loss's gradient on some parameters, averaged over all processes.

    Raises:
        DeadTermError: a loss is not connected to any of the parameters.
    """
    scale = _HALF_PRECISION_SCALE if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu") else 1.0
    norms = []
    for name, loss in losses.items():
        found: Sequence[Tensor | None] = ()
        if loss.requires_grad:
            found = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
        reached = [gradient for gradient in found if gradient is not None]
        if not reached:
            raise DeadTermError(
                f"distillation term {name} is not connected to the student: its gradient reaches no weight of the "
                "trunk. Its student tap is detached, or lies in a frozen part; choose another tap"
            )
        norms.append(torch.stack(torch._foreach_norm(reached)).double().norm() / scale)
    together = torch.stack(norms)
    together = mean_over_processes(together)
    return dict(zip(losses, together.tolist(), strict=True))
