r"""Adversarial Sampling: train also on the worst weights near the posterior.

A Bayesian network's average may be good while single draws are bad. This objective adds the loss of draws that an
inner maximisation has moved towards where the batch fits worst,

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

from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn import schedules
from pyrobnn.arguments import check_number, check_positive, check_positive_int
from pyrobnn.bayesianize import frozen_buffers
from pyrobnn.elbo.draw_plan import DrawPlan
from pyrobnn.elbo.mean_field import MeanFieldELBO
from pyrobnn.elbo.parts import (
    ELBOParts,
    Particle,
    blaming_draws,
    check_finite,
    detach,
    gradients_restored,
    mean_parts,
)
from pyrobnn.guides.mean_field import MeanField

__all__ = ["AdversarialELBO"]

_PLAIN = DrawPlan()


class AdversarialELBO(MeanFieldELBO):
    """The ELBO of a :class:`~pyrobnn.guides.MeanField` guide with adversarially sampled weights.

    A step costs ``2 + num_steps`` passes of the network. The network's running statistics follow the ordinary pass
    alone; its own dropout and batch statistics are as in training throughout.

    Args:
        strength: Weight λ of the adversarial loss, from 0 (the ELBO) to 1.
        step_size: Step α of the noise.
        num_steps: Number of steps of the noise.
        temperature: Weight of the KL, or its schedule, as for :class:`~pyrobnn.elbo.MeanFieldELBO`.

    Attributes:
        adversarial: Log likelihood of the last adversarial draw, in sum units, beside the ``parts`` of the ordinary
            one.

    Raises:
        TypeError: At the first step, if the guide is no ``MeanField``.
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        strength: float = 0.8,
        step_size: float = 0.02,
        num_steps: int = 5,
        temperature: schedules.Schedule = 1.0,
    ) -> None:
        check_number("strength", strength, 0.0, 1.0)
        check_positive("step_size", step_size)
        check_positive_int("num_steps", num_steps)
        super().__init__(temperature=temperature)
        self.strength = strength
        self.step_size = step_size
        self.num_steps_inside = num_steps
        self.adversarial: Tensor | None = None

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The objective as a tensor to call ``backward()`` on."""
        guide, temperature = _mean_field(guide), self.current_temperature()
        noise = self.worst_noise(model, guide, args, kwargs)
        ordinary = self._evaluate(model, guide, guide.draw(), None, temperature, args, kwargs, _PLAIN)
        adversarial = self._adversarial(model, guide, guide.draw(noise), args, kwargs)
        guide.announce_parameters()
        self.parts = detach(mean_parts([ordinary], [1.0]))
        loss = temperature * (ordinary.in_graph + ordinary.covered) - (1.0 - self.strength) * ordinary.log_likelihood
        return torch.as_tensor(loss - self.strength * adversarial.log_likelihood)

    def backward(
        self,
        model: Any,
        guide: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        scale: float = 1.0,
    ) -> ELBOParts:
        """Adds the gradients of ``scale`` times the objective to the parameters.

        Returns:
            The parts of the ordinary pass, detached.

        Raises:
            NonFiniteLossError: If either pass is NaN or infinite; no gradient has been added then.
        """
        guide, kwargs, temperature = _mean_field(guide), kwargs or {}, self.current_temperature()
        guide.begin_step()
        noise = self.worst_noise(model, guide, args, kwargs) if self.strength else None
        with gradients_restored(model, guide):
            values, covered = guide.write_draw()
            with blaming_draws(values):
                ordinary = self._evaluate(model, guide, values, covered, temperature, args, kwargs, _PLAIN)
                check_finite(ordinary)
            loss = temperature * ordinary.in_graph - (1.0 - self.strength) * ordinary.log_likelihood
            (torch.as_tensor(loss) * scale).backward()
            guide.pull_back(scale * temperature)
            if noise is not None:
                values, _ = guide.write_draw(noise)
                with blaming_draws(values):
                    adversarial = self._adversarial(model, guide, values, args, kwargs)
                    check_finite(adversarial)
                (torch.as_tensor(adversarial.log_likelihood) * (-self.strength * scale)).backward()
                guide.pull_back(0.0)
        self.num_steps += 1
        self.parts = detach(mean_parts([ordinary], [1.0]))
        return self.parts

    def worst_noise(self, model: Any, guide: MeanField, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Noise ε ``[num_latents]`` after the ascent from a draw of the standard normal; no parameter is changed."""
        noise = torch.randn_like(guide.flat_loc)
        for _ in range(self.num_steps_inside):
            values, _ = guide.write_draw(noise)
            with torch.enable_grad():  # also where only the value of the objective is asked for
                run = self._adversarial(model, guide, values, args, kwargs)
                slope = guide.noise_gradient(torch.as_tensor(-run.log_likelihood))
            noise.add_(slope.sign_(), alpha=self.step_size)
        return noise

    def _adversarial(
        self, model: Any, guide: MeanField, values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Particle:
        """A run whose batch statistics are not remembered and whose divergence is not counted."""
        with frozen_buffers(model if isinstance(model, nn.Module) else nn.Module()):
            run = self._evaluate(model, guide, values, 0.0, 0.0, args, kwargs, _PLAIN)
        self.adversarial = torch.as_tensor(run.log_likelihood).detach()
        return run


def _mean_field(guide: Any) -> MeanField:
    if not isinstance(guide, MeanField):
        raise TypeError(
            f"guide: adversarial sampling moves the noise ε of w = μ + σε, so it needs a MeanField guide, got "
            f"{type(guide).__name__}."
        )
    return guide
