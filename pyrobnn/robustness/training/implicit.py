r"""ADT-IMP-AM: adversarial distributional training with perturbations of an unknown density.

A generator makes the perturbation itself, from what :class:`AmortizedDistribution` shows it and from noise,

.. math::  \delta = \epsilon \tanh G(x, \nabla, \nabla_{FGSM}, z), \qquad z \sim U(-1, 1)^k,

so that its density is not known. Its entropy is bounded from below, up to a constant, by how well the noise can be told
from the perturbation: :math:`H(p) \ge E \log q(z \mid \delta) + c` for any density q, here a Gaussian whose mean and
variance an encoder gives. Generator and encoder both raise the bound; the generator raises the loss, too. Since a
perturbation has more elements than the noise, the bound has no maximum; it counts up to ``threshold``, as a hinge.

The published code takes λ = 1 and a hinge on the mean of :math:`-\log q` over the k numbers of z, with the threshold
0.9. A Gaussian that knows nothing of z has :math:`\frac12 \log \frac{2 \pi e}{3} = 0.87` there, so that with an encoder
that learns its variance, as here, such a hinge never acts; the default is 0.
Dong, Deng, Pang, Zhu & Su (2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_number, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import Clip
from pyrobnn.robustness.training.amortized import GeneratedPerturbation, shown_to_generator
from pyrobnn.robustness.training.attacked import AttackedNetwork

__all__ = ["ImplicitDistribution"]

_SMALLEST_LOG_SCALE = -5.0


@explained
class ImplicitDistribution(GeneratedPerturbation):
    """Perturbations in the maximum norm that a generator makes from noise (ADT-IMP-AM).

    ::

        generator = PerturbationGenerator(channels=1, outputs=1, noise_size=64, image_size=(28, 28))
        adversary = ImplicitDistribution(generator, PerturbationEncoder(channels=1), epsilon=0.2, clip=(0.0, 1.0))
        fit(model, guide, loader, elbo=AdversarialTraining(adversary), players=adversary.players())

    Args:
        generator: A network called as ``generator(shown, z)`` with ``shown [B, 3C, ...]``, as for
            :class:`AmortizedDistribution`, and noise ``z [B, noise_size]``; it returns ``[B, C, ...]``, of which tanh
            is taken here. It is trained in place.
        encoder: A network from perturbations divided by ``epsilon``, ``[B, C, ...]``, to ``[B, 2 * noise_size]``: means
            and log standard deviations of the noise. Trained by the same player.
        epsilon: Radius of the ball, in the inputs' units; positive.
        clip: Smallest and largest input allowed; None for no limits.
        noise_size: Number k of noise variables.
        entropy_weight: Weight λ of the bound, which is the mean over the noise variables.
        threshold: The mean of ``-log q`` over a batch and the noise variables is lowered to this value and no further;
            ``-math.inf``: without end.

    Raises:
        TypeError: If a network is no module.
        ValueError: If another argument is out of its range; at the first step, if a network returns another shape.
    """

    def __init__(
        self,
        generator: nn.Module,
        encoder: nn.Module,
        epsilon: float,
        *,
        clip: Clip = None,
        noise_size: int = 64,
        entropy_weight: float = 1.0,
        threshold: float = 0.0,
    ) -> None:
        super().__init__({"generator": generator, "encoder": encoder}, epsilon, clip, entropy_weight)
        check_positive_int("noise_size", noise_size)
        if threshold != -math.inf:
            check_number("threshold", threshold, -1e6, 1e6)
        self.noise_size, self.threshold = noise_size, threshold

    def proposed(self, network: AttackedNetwork, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Perturbations from fresh noise, and the bound of their entropy."""
        noise = torch.empty(len(x), self.noise_size, dtype=x.dtype, device=x.device).uniform_(-1.0, 1.0)
        found = self.networks["generator"](shown_to_generator(network, x, y, self), noise)
        if found.shape != x.shape:
            raise ValueError(f"generator: it must return shape {tuple(x.shape)}, not {tuple(found.shape)}.")
        relative = torch.tanh(found)
        return self.epsilon * relative, self.bound(relative, noise)

    def bound(self, relative: Tensor, noise: Tensor) -> Tensor:
        """The mean of ``log q`` over the batch and the noise variables, cut at minus the threshold.

        Args:
            relative: Perturbations divided by the radius ``[B, C, ...]``.
            noise: What they were made from ``[B, noise_size]``.

        Raises:
            ValueError: If the encoder returns another shape.
        """
        found = self.networks["encoder"](relative)
        if found.shape != (len(noise), 2 * self.noise_size):
            raise ValueError(
                f"encoder: it must return shape {(len(noise), 2 * self.noise_size)}, means and log standard deviations "
                f"of the noise, not {tuple(found.shape)}."
            )
        mean, log_scale = found.chunk(2, 1)
        log_scale = log_scale.clamp_min(_SMALLEST_LOG_SCALE)
        log_q = -0.5 * ((noise - mean) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2.0 * math.pi)
        return log_q.mean().clamp_max(-self.threshold)
