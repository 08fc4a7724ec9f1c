r"""Adversarial Sampling: train also on the worst weights near the posterior.

A Bayesian network's average may be good while single draws are bad. This objective adds the loss of draws that an
inner maximization has moved toward where the batch fits worst,

.. math::  \min_\theta\; (1 - \lambda)\, L_p + \lambda\, L_{adv} + \mathrm{KL}, \qquad
           L_p = -E_\varepsilon \log p(D \mid \mu + \sigma\varepsilon), \quad
           L_{adv} = -\log p(D \mid \mu + \sigma\varepsilon_{adv}),

where :math:`\varepsilon_{adv}` starts at a draw of :math:`N(0, I)` and takes ``num_steps`` steps
:math:`\varepsilon \leftarrow \varepsilon + \alpha\, \mathrm{sign}\, \nabla_\varepsilon L_p`. None of its elements moves
by more than :math:`\alpha` times their number, which bounds the distance of the two distributions. It is then held
fixed, and both losses are differentiated with respect to :math:`\mu` and :math:`\sigma`. The KL is whole whatever
:math:`\lambda`. Zhang, Hua, Song, Wang, Xue, Ma & Guan, *Improving Bayesian Neural Networks by Adversarial Sampling*
(2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_number, check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.guides.base import Guide
from pyrobnn.objectives.elbo import ELBO
from pyrobnn.objectives.parts import explaining_non_finite_draws
from pyrobnn.objectives.terms import Evaluation, Run, Term

__all__ = ["AdversarialELBO", "AdversarialTerm"]


@explained
class AdversarialTerm(Term):
    """The log likelihood of a draw whose noise has been moved to where the batch fits worst, which is maximized.

    Args:
        weight: Its factor in the loss, ``-λ``.
        step_size: Step α of the noise.
        num_steps: Number of steps of the noise.

    Raises:
        ValueError: If ``weight`` is no finite number, or one of the others not positive.
    """

    name = "adversarial_log_likelihood"
    when: ClassVar[Literal["draw", "after", "across"]] = "after"

    def __init__(self, weight: float, step_size: float, num_steps: int) -> None:
        super().__init__(weight)
        check_positive("step_size", step_size)
        check_positive_int("num_steps", num_steps)
        self.step_size, self.num_steps = step_size, num_steps

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """Of one draw; batch statistics of its runs are not remembered."""
        noise = self.worst_noise(evaluation)
        draws = evaluation.step.draw(None, noise)
        with explaining_non_finite_draws(draws, self.name):
            return torch.as_tensor(evaluation.run(draws).log_likelihood)

    def worst_noise(self, evaluation: Evaluation) -> Tensor:
        """Noise ε ``[noise_size]`` after the ascent from a draw of the standard normal; no parameter is changed."""
        guide: Guide = evaluation.guide
        like = next(guide.parameters())
        size = guide.facts.noise_size
        assert size is not None
        noise = torch.randn(size, dtype=like.dtype, device=like.device)
        for _ in range(self.num_steps):
            with torch.enable_grad():  # also where only the value of the objective is requested
                draws = guide.rsample(noise.requires_grad_())
                with explaining_non_finite_draws(draws, self.name):
                    loss = -torch.as_tensor(evaluation.run(draws).log_likelihood)
                (slope,) = torch.autograd.grad(loss, noise)
            noise = noise.detach().add_(slope.sign_(), alpha=self.step_size)
        return noise


@explained
class AdversarialELBO(ELBO):
    """The ELBO with adversarially sampled weights, for guides whose draws are made from Gaussian noise.

    A step costs ``2 + num_steps`` passes of the network. The network's running statistics follow the ordinary pass
    alone; its own dropout and batch statistics are as in training throughout.

    Args:
        strength: Weight λ of the adversarial loss, from 0 (the ELBO) to 1.
        step_size: Step α of the noise.
        num_steps: Number of steps of the noise.
        temperature: Weight of the KL, or its schedule, as for :class:`~pyrobnn.objectives.ELBO`.

    Raises:
        TypeError: At the first step, if the guide is not trained by draws made from Gaussian noise.
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        strength: float = 0.8,
        step_size: float = 0.02,
        num_steps: int = 5,
        temperature: schedules.Schedule | None = None,
    ) -> None:
        check_number("strength", strength, 0.0, 1.0)
        term = AdversarialTerm(-strength, step_size, num_steps)
        super().__init__(temperature=temperature, terms=[term], likelihood_weight=1.0 - strength)

    def check_guide(self, guide: Guide) -> None:
        """Needs noise to move.

        Raises:
            TypeError: If there is none.
        """
        if guide.facts.noise_size is None:
            raise TypeError(
                "guide: adversarial sampling moves the noise ε of w = μ + σε, so it needs a guide that is trained by "
                f"draws made from Gaussian noise, such as MeanField; got {type(guide).__name__}."
            )
