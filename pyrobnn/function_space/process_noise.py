r"""Noise of Gaussian-process regression on a model's targets, and the targets that are regressed on.

A :class:`~pyrobnn.likelihoods.Normal` has its own σ. Classes are regressed on as one-hot vectors less their mean
``1 / C``, with one σ; the class of a new input is that of the largest score with noise,

.. math::  p(c \mid f) = P\big[f_c + \varepsilon_c \ge f_j + \varepsilon_j\ \forall j\big]
                       = \int N(u; f_c, \sigma^2) \prod_{j \ne c} \Phi\Big(\frac{u - f_j}\sigma\Big) du .
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood, Normal
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["class_scores", "log_largest", "stated_noise", "targets_of"]


def targets_of(model: SupervisedModel, y: Any, outputs: int) -> Tensor:
    """What is regressed on, ``[N, O]`` in double precision.

    Raises:
        TypeError: If the likelihood is neither Normal nor one of classes, or targets are of another kind.
        ValueError: If targets do not fit the network's outputs, or are not finite.
    """
    likelihood = model.likelihood
    if not isinstance(likelihood, Likelihood) or not isinstance(likelihood, Normal | ClassLikelihood):
        raise TypeError(
            f"model: expected a likelihood Normal (exact regression) or one of classes (regression on one-hot targets),"
            f" got {type(likelihood).__name__}; for others make a variational Gaussian process of "
            "pyrobnn.function_space.gpytorch_kernel(model) in GPyTorch."
        )
    if likelihood.site_priors:
        raise TypeError(
            f"model: the likelihood has the latent site {next(iter(likelihood.site_priors))!r}; a Gaussian process has "
            "a noise that is stated or learned, as in Normal(0.1) or Normal()."
        )
    if not isinstance(y, Tensor):
        raise TypeError(f"y: expected a tensor of targets, got {type(y).__name__}.")
    if isinstance(likelihood, ClassLikelihood):
        return class_scores(y, outputs)
    if y.dim() != 2 or y.shape[1] != outputs or not y.is_floating_point() or not bool(y.isfinite().all()):
        raise ValueError(
            f"y: expected finite targets [N, {outputs}] as the network's outputs, all observed, got shape "
            f"{list(y.shape)} of {y.dtype}."
        )
    return y.double()


def class_scores(y: Tensor, classes: int) -> Tensor:
    """One-hot targets less ``1 / C``, ``[N, C]``.

    Raises:
        ValueError: If targets are no labels of the network's classes.
    """
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or classes < 2:
        raise ValueError(
            f"y: expected labels [N] of integers for a network of at least two outputs, one for each class, got shape "
            f"{list(y.shape)} of {y.dtype} and {classes} outputs."
        )
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"y: expected labels from 0 to {classes - 1}, got {int(y.min())} to {int(y.max())}.")
    return F.one_hot(y.long(), classes).double() - 1.0 / classes


def stated_noise(model: SupervisedModel, noise: Any, outputs: int) -> Tensor | None:
    """σ as given, or as the likelihood has it, ``[O]``; None where it is to be fitted by the evidence.

    Raises:
        TypeError: If ``noise`` is no number.
        ValueError: If it is not positive, or has another shape than the outputs.
    """
    likelihood = model.likelihood
    if noise is not None:
        check_positive("noise", noise, "standard deviation")
        return torch.full((outputs,), float(noise), dtype=torch.float64)
    if not isinstance(likelihood, Normal) or likelihood.untrained:
        return None
    return likelihood.noise_scale().detach().double().expand(outputs).clone()


def log_largest(scores: Tensor, noise: Tensor) -> Tensor:
    """``log p(c | f)`` of scores ``[..., C]``, normalized; a trapezoid sum over the largest score."""
    grid = torch.linspace(-8.0, 8.0, 65, dtype=scores.dtype, device=scores.device)
    top = scores.amax(-1, keepdim=True) / noise
    distance = (top + grid).unsqueeze(-2) - (scores / noise).unsqueeze(-1)  # [..., C, 65]
    below = torch.special.log_ndtr(distance)
    density = -0.5 * distance.square() - 0.5 * math.log(2.0 * math.pi)
    return torch.log_softmax((density + below.sum(-2, keepdim=True) - below).logsumexp(-1), -1)
