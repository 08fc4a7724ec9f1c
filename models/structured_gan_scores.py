r"""What a structured GAN has learned: grids of classes and styles, transfer of styles, and how far the two are apart.

*Controllability* is the rate at which a classifier finds the class that a sample was made for. *Style information* is a
lower bound of the mutual information of a class and the style that is inferred from its inputs,

.. math::  I(y; I(x)) \ge H(y) - E\,[-\log q(y \mid I(x))]

(Barber & Agakov 2003), with a classifier q that is fitted to one half of the rows and evaluated on the other. It is
zero if the style says nothing of the class, and :math:`\log K` for K equally frequent classes if it says all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.semi_supervised import check_labels
from models.structured_gan import StructuredGAN
from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int

__all__ = ["controllability", "style_grid", "style_information", "style_transfer"]


@torch.no_grad()
def style_grid(sgan: StructuredGAN, num_styles: int = 10, styles: Tensor | None = None) -> Tensor:
    """Samples ``[K, S, ...]``: a class in each row, a style in each column.

    Args:
        sgan: The GAN, with its averages (``StructuredGAN.averaged``).
        num_styles: Number S of styles from p(z).
        styles: These styles ``[S, latent_dim]`` instead.
    """
    check_positive_int("num_styles", num_styles)
    z = sgan.noise_prior().sample((num_styles,)).to(sgan.class_probs) if styles is None else styles
    return _all_classes(sgan, z).transpose(0, 1)


@torch.no_grad()
def style_transfer(sgan: StructuredGAN, x: Tensor) -> Tensor:
    """What each input ``[B, ...]`` would be as a member of each class: ``[B, K, ...]``, in its own style I(x).

    Raises:
        ValueError: If the GAN has no inference network.
    """
    return _all_classes(sgan, _inferred(sgan, x))


def _all_classes(sgan: StructuredGAN, z: Tensor) -> Tensor:
    classes = sgan.num_classes or 1
    y = torch.arange(classes, device=z.device).repeat(len(z))
    generator = sgan.generator
    was, _ = generator.training, generator.eval()
    made = sgan.generate(y, z.repeat_interleave(classes, 0))
    generator.train(was)
    return made.unflatten(0, (len(z), classes))


@torch.no_grad()
def controllability(
    sgan: StructuredGAN, classifier: Callable[[Tensor], Tensor] | None = None, num_samples: int = 10_000
) -> float:
    """The share of samples of p(y) p(z) whose class is found.

    Args:
        sgan: The GAN.
        classifier: A function from samples to logits ``[B, K]``, best one that knows other data; None: the GAN's own.
        num_samples: How many samples.
    """
    check_positive_int("num_samples", num_samples)
    judge = sgan.classifier.eval() if classifier is None else classifier
    y = torch.multinomial(sgan.class_probs, num_samples, replacement=True)
    return float((judge(sgan.draw(num_samples, y)).argmax(1) == y).double().mean())


def style_information(sgan: StructuredGAN, x: Tensor, y: Tensor, *, hidden: int = 64, steps: int = 500) -> float:
    """The lower bound of the mutual information of class and inferred style, in nats; at least 0.

    Args:
        sgan: The GAN.
        x: Inputs ``[B, ...]``.
        y: Their classes ``[B]``.
        hidden: Units of the hidden layer of q.
        steps: Its steps of Adam, on all rows of its half at once.

    Raises:
        ValueError: If the GAN has no inference network, or there are not two rows of each class that occurs.
    """
    check_labels(y, sgan.num_classes or 1)
    counts = torch.bincount(y)
    if len(x) != len(y) or len(counts[counts > 0]) < 2 or int(counts[counts > 0].min()) < 2:
        raise ValueError("y: expected a class for each input, two classes at least, and two rows of each.")
    with torch.no_grad():
        style = _inferred(sgan, x)
    style = (style - style.mean(0)) / style.std(0).clamp_min(1e-6)
    with random_state.seeded(0, style.device), torch.enable_grad():
        order = torch.randperm(len(y), device=y.device)
        fitted, held = order[::2], order[1::2]
        probe = nn.Sequential(nn.Linear(style.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, len(counts))).to(style)
        optimizer = torch.optim.Adam(probe.parameters(), lr=1e-2, weight_decay=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(probe(style[fitted]), y[fitted]).backward()
            optimizer.step()
    with torch.no_grad():
        frequencies = torch.bincount(y[held], minlength=len(counts)).double() / len(held)
        entropy = -float(torch.special.xlogy(frequencies, frequencies).sum())
        return max(0.0, entropy - float(cross_entropy(probe(style[held]), y[held])))


def _inferred(sgan: StructuredGAN, x: Tensor) -> Tensor:
    if sgan.inference is None:
        raise ValueError("sgan: it has no inference network; build it with inference= and style_discriminator=.")
    was, _ = sgan.inference.training, sgan.inference.eval()
    style = sgan.inference(x)
    sgan.inference.train(was)
    return style
