r"""Attacks in the maximum norm on a posterior predictive: FGSM and PGD.

The attacked loss of an input is its negative log predictive density under K draws,

.. math::  L(x) = -\log \frac1K \sum_k p(y \mid x, w_k),

the mean of *probabilities*; with K = 1, or a draw given as such, it attacks that one network. FGSM (Goodfellow, Shlens
& Szegedy 2015) takes one step :math:`x + \epsilon\, \mathrm{sign} \nabla_x L`. PGD (Madry et al. 2018; without a random
start the basic iterative method of Kurakin, Goodfellow & Bengio 2017) repeats smaller ones, each followed by a
projection to the ball :math:`|x' - x|_\infty \le \epsilon` and the clip range. Draws are pinned: each step sees the
same K. The gradient is :math:`\sum_k r_k \nabla_x (-\log p_k)` with :math:`r_k \propto p_k(y \mid x)`, summed draw by
draw.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled, ordinary, refuse_inference_tensors
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.prediction.draws import PinnedDraws, check_posterior
from pyrobnn.prediction.input_gradients import mixture_gradient
from pyrobnn.prediction.runners import Runner

__all__ = ["fgsm", "pgd"]

Clip = tuple[float, float] | None


@explained
def fgsm(
    model: nn.Module,
    posterior: Any,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    num_samples: int = 10,
    clip: Clip = None,
    targeted: bool = False,
    likelihood: Likelihood | None = None,
    batch_size: int | None = None,
    max_bytes: int = 256 * 2**20,
    seed: int | None = None,
) -> Tensor:
    """One step of ``epsilon`` along the sign of the gradient.

    Args:
        model: A :class:`~pyrobnn.SupervisedModel`, or any Pyro model that returns the network's outputs when called
            with inputs only (then ``likelihood`` is needed). It is run in evaluation mode; its modes, buffers and
            ``requires_grad`` are as before afterward.
        posterior: A guide, or draws ``{site: [K, *site shape]}``. A single draw to be attacked is
            ``{site: value.unsqueeze(0)}`` with ``num_samples=1``.
        x: Inputs ``[N, ...]``.
        y: Their targets, or with ``targeted`` those that are to be reached, ``[N]`` or as the likelihood expects them.
        epsilon: Radius of the ball, in the inputs' units; 0 changes nothing.
        num_samples: Number K of draws.
        clip: Smallest and largest input allowed, such as ``(0.0, 1.0)``; None for no limits.
        targeted: Lower the loss of ``y`` instead of raising it.
        likelihood: What the outputs mean; the model's own if None.
        batch_size: Inputs that are attacked at a time, which declares that rows do not interact; None cuts where
            :func:`pyrobnn.predict` would. The draws are the same for all.
        max_bytes: Budget for draws.
        seed: Fixes the draws, and leaves torch's random state alone; None takes a seed from it.

    Returns:
        Adversarial inputs, of the shape of ``x``.

    Raises:
        TypeError: If the inputs or the posterior are of the wrong kind.
        ValueError: If an argument is out of its range, an input is, or a gradient is not finite.
    """
    options = (epsilon, num_samples, clip, targeted, likelihood, batch_size, max_bytes, seed)
    with gradients_enabled():
        attack = _Attack(model, posterior, *options)
        return attack.run(x, y, steps=1, step_size=epsilon, random_start=False)


@explained
def pgd(
    model: nn.Module,
    posterior: Any,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = False,
    num_samples: int = 10,
    clip: Clip = None,
    targeted: bool = False,
    likelihood: Likelihood | None = None,
    batch_size: int | None = None,
    max_bytes: int = 256 * 2**20,
    seed: int | None = None,
) -> Tensor:
    """Projected steps along the sign of the gradient.

    Args:
        model: As for :func:`fgsm`.
        posterior: As for :func:`fgsm`.
        x: Inputs ``[N, ...]``.
        y: Their targets, or with ``targeted`` those that are to be reached.
        epsilon: Radius of the ball, in the inputs' units.
        steps: Number of steps.
        step_size: Length of a step; None takes ``2.5 * epsilon / steps``, with which any point of the ball is in reach.
        random_start: Begin at a uniform point of the ball instead of its center.
        num_samples: Number K of draws, the same in all steps.
        clip: Smallest and largest input allowed.
        targeted: Lower the loss of ``y`` instead of raising it.
        likelihood: What the outputs mean; the model's own if None.
        batch_size: As for :func:`fgsm`.
        max_bytes: Budget for draws.
        seed: Fixes the draws and the start.

    Returns:
        Adversarial inputs of the last step, of the shape of ``x``.

    Raises:
        TypeError: As for :func:`fgsm`.
        ValueError: As for :func:`fgsm`.
    """
    check_positive_int("steps", steps)
    if step_size is not None:
        check_positive("step_size", step_size)
    options = (epsilon, num_samples, clip, targeted, likelihood, batch_size, max_bytes, seed)
    length = 2.5 * epsilon / steps if step_size is None else step_size
    with gradients_enabled():
        attack = _Attack(model, posterior, *options)
        return attack.run(x, y, steps=steps, step_size=length, random_start=random_start)


class _Attack:
    """What both attacks share: the pinned draws, the gradient, the projection."""

    def __init__(
        self,
        model: nn.Module,
        posterior: Any,
        epsilon: float,
        num_samples: int,
        clip: Clip,
        targeted: bool,
        likelihood: Likelihood | None,
        batch_size: int | None,
        max_bytes: int,
        seed: int | None,
    ) -> None:
        if isinstance(epsilon, bool) or not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon: expected a radius of at least 0, got {epsilon!r}.")
        if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
            raise ValueError(f"clip: expected (smallest, largest), got {clip!r}.")
        check_positive_int("max_bytes", max_bytes)
        refuse_inference_tensors(model=model)
        check_posterior(model, posterior, "posterior")
        self.runner = Runner(model, likelihood, "loop", max_bytes, batch_size)  # knows the likelihood and the rows
        self.model, self.epsilon, self.clip, self.targeted = model, epsilon, clip, targeted
        self.seed = random_state.fresh_seed() if seed is None else seed
        self.draws = PinnedDraws(posterior, num_samples, max_bytes, seed=self.seed)

    def run(self, x: Tensor, y: Tensor, *, steps: int, step_size: float, random_start: bool) -> Tensor:
        """All steps on all inputs."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a tensor of floating-point inputs, got {kind}.")
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"x, y: expected as many targets as inputs, at least one, got {len(y)} and {len(x)}.")
        x, y = ordinary(x.detach()), ordinary(y)
        if not bool(x.isfinite().all()):
            raise ValueError("x: it holds NaN or infinite inputs; clean the data.")
        if self.clip is not None and not bool(((x >= self.clip[0]) & (x <= self.clip[1])).all()):
            raise ValueError(
                f"x: inputs reach from {float(x.min()):.4g} to {float(x.max()):.4g}, beyond clip={self.clip}; pass the "
                "range of your inputs."
            )
        with self.runner.ready(), random_state.preserved(x.device):
            with torch.no_grad():
                first = Draws.of(next(iter(self.draws))).at(0)
                parts = self.runner.cutter.parts(x, functools.partial(self.runner.outputs, first))
            random_state.seed(self.seed, x.device)
            labels = y.split([len(part.inputs) for part in parts])
            return torch.cat(
                [
                    self._perturbed(part.inputs, own, steps, step_size, random_start)
                    for part, own in zip(parts, labels, strict=True)
                ]
            )

    def _perturbed(self, x: Tensor, y: Tensor, steps: int, step_size: float, random_start: bool) -> Tensor:
        moved = x.clone()
        if random_start:
            moved = self._project(x, x + torch.empty_like(x).uniform_(-self.epsilon, self.epsilon))
        direction = -step_size if self.targeted else step_size
        for _ in range(steps):
            moved = self._project(x, moved + direction * self.gradient(moved, y).sign())
        return moved

    def _project(self, x: Tensor, moved: Tensor) -> Tensor:
        moved = torch.minimum(torch.maximum(moved, x - self.epsilon), x + self.epsilon)
        return moved if self.clip is None else moved.clamp(*self.clip)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of each input's loss; the graph of one draw exists at a time."""
        likelihood = self.runner.likelihood

        def log_prob(outputs: Tensor) -> Tensor:
            likelihood.check_shape(outputs, y)
            scores = likelihood.observation(likelihood.parameters_of(widened(outputs))).log_prob(y)
            return scores.reshape(len(y), -1).sum(-1)

        return -mixture_gradient(self.model, self.draws, x, log_prob)
