r"""Likelihoods: a network's output becomes the distribution of an observation.

Each likelihood is a Pyro module: called with the network's output ``[B, ...]`` it returns a distribution of batch
shape ``[B]``. It also says what one posterior draw predicts, in one of two forms that
:func:`pyrobnn.predict` pools over draws: class probabilities (uncertainty in nats) or a mean and a variance
(uncertainty in the target's units squared). The variance, or the entropy of the probabilities, at a fixed draw is
the aleatoric part.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyrobnn.priors import FixedPrior
from pyrobnn.priors.base import is_positive
from pyrobnn.softmax import Softmax
from pyrobnn.stochastic import StochasticModule

__all__ = ["Bernoulli", "Categorical", "HeteroscedasticNormal", "Likelihood", "Normal", "Poisson"]


class Likelihood(StochasticModule):
    """Base class: subclasses implement :meth:`forward` and one of :meth:`probabilities` and :meth:`moments`.

    Attributes:
        is_discrete: Whether predictions are class probabilities (else a mean and a variance).
        ignore_index: A label that stands for no observation, or None.
    """

    is_discrete = False
    ignore_index: int | None = None

    def forward(self, outputs: Tensor) -> dist.Distribution:
        """The observation's distribution, batch shape ``[B]``, given the network's output ``[B, ...]``."""
        raise NotImplementedError

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities ``[B, ..., C]``, one posterior draw (discrete likelihoods only)."""
        raise NotImplementedError(f"{type(self).__name__} is not a likelihood of classes.")

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (aleatoric) variance of the observation, each ``[B, ...]``, one posterior draw."""
        raise NotImplementedError(f"{type(self).__name__} is a likelihood of classes.")

    def from_moments(self, mean: Tensor, variance: Tensor) -> dist.Distribution:
        """The elementwise observation distribution with these moments, one posterior draw each."""
        return dist.Normal(mean, variance.sqrt())

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The shape that targets must have beside ``outputs``."""
        return outputs.shape

    def check_shape(self, outputs: Tensor, y: Tensor) -> None:
        """Refuses targets that would broadcast into a wrong loss without a word.

        Raises:
            TypeError: If ``y`` is no tensor.
            ValueError: If its shape is not :meth:`target_shape`.
        """
        if not isinstance(y, Tensor):
            raise TypeError(f"y: expected a tensor of targets, got {type(y).__name__}.")
        expected = self.target_shape(outputs)
        if y.shape != expected:
            raise ValueError(
                f"y: {type(self).__name__} expects targets of shape {tuple(expected)} beside network outputs of shape "
                f"{tuple(outputs.shape)}, got {tuple(y.shape)}; reshape y, or the network's output."
            )

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Checks shape, dtype and range of targets; done by :func:`pyrobnn.fit` during the first epoch.

        Raises:
            TypeError: If the dtype of ``y`` is wrong.
            ValueError: If its shape or a value is.
        """
        self.check_shape(outputs, y)
        if not y.is_floating_point() or not bool(y.isfinite().all()):
            _refuse(self, y, "finite floating-point targets")

    def config(self) -> dict[str, Any]:
        """JSON-able constructor arguments; tensors and latent sites are saved with the state."""
        return {}


def _refuse(likelihood: Likelihood, y: Tensor, expected: str) -> None:
    is_integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    right_kind = y.is_floating_point() if "floating" in expected else is_integer
    kind = ValueError if right_kind else TypeError
    detail = f"dtype {y.dtype}"
    if y.numel() and not y.is_complex():
        detail += f" with values from {y.min().item():.4g} to {y.max().item():.4g}"
    raise kind(f"y: {type(likelihood).__name__} expects {expected}, got {detail}.")


class Categorical(Likelihood):
    """Classes ``0 … C - 1`` with probabilities softmax(output).

    Args:
        class_dim: Dimension of the output that holds the classes. The default suits ``[B, C]``; use 1 for
            per-pixel logits ``[B, C, H, W]`` with targets ``[B, H, W]``.
        ignore_index: A label that stands for no observation, such as the void class of a segmentation. What it marks
            has log probability 0 and no gradient; predictions are made for it as for any other. It masks pixels inside
            the plate of images, so images count as ever, however much of them is void.

    Raises:
        TypeError: If ``ignore_index`` is no int.
    """

    is_discrete = True

    def __init__(self, class_dim: int = -1, *, ignore_index: int | None = None) -> None:
        super().__init__()
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise TypeError(f"ignore_index: expected the label to ignore, an int, or None, got {ignore_index!r}.")
        self.class_dim, self.ignore_index = class_dim, ignore_index

    def forward(self, outputs: Tensor) -> dist.Distribution:
        """Categorical with logits ``outputs``."""
        self.target_shape(outputs)  # refuses outputs without a class dimension
        found = Softmax(self._classes_last(outputs), ignore_index=self.ignore_index)
        return found.to_event(outputs.dim() - 2)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax, classes last."""
        return self._classes_last(outputs).softmax(-1)

    def _classes_last(self, outputs: Tensor) -> Tensor:
        return outputs if self.class_dim == -1 else outputs.movedim(self.class_dim, -1)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The output's shape without the classes."""
        if outputs.dim() < 2:
            raise ValueError(
                f"net: Categorical expects outputs [B, C] with a class dimension, got shape {tuple(outputs.shape)}."
            )
        return self._classes_last(outputs).shape[:-1]

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Integer labels in ``0 … C - 1``, or ``ignore_index``."""
        self.check_shape(outputs, y)
        classes = outputs.shape[self.class_dim]
        wrong_kind = y.is_floating_point() or y.is_complex() or y.dtype == torch.bool
        known = y if wrong_kind or self.ignore_index is None else y[y != self.ignore_index]
        if wrong_kind or (known.numel() and (known.min() < 0 or known.max() >= classes)):
            also = "" if self.ignore_index is None else f" or {self.ignore_index}, which is ignored,"
            _refuse(self, y, f"integer labels from 0 to {classes - 1}{also} (the network has {classes} outputs)")

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"class_dim": self.class_dim, "ignore_index": self.ignore_index}


class Bernoulli(Likelihood):
    """Binary targets (0 or 1) of the output's shape, with probability sigmoid(output) of a 1."""

    is_discrete = True

    def forward(self, outputs: Tensor) -> dist.Distribution:
        """Bernoulli with logits ``outputs``."""
        return dist.Bernoulli(logits=outputs).to_event(outputs.dim() - 1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probabilities of 0 and 1 on a new last dimension."""
        return torch.stack([torch.sigmoid(-outputs), torch.sigmoid(outputs)], -1)

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Floating-point zeros and ones."""
        self.check_shape(outputs, y)
        if not y.is_floating_point() or not bool(((y == 0) | (y == 1)).all()):
            _refuse(self, y, "floating-point targets that are 0 or 1")


class Normal(Likelihood):
    r"""Gaussian noise around the output: :math:`y \sim N(f(x), \sigma^2)`, one σ for all data.

    Args:
        scale: The noise's standard deviation: a positive number (fixed, or the start if ``learn_scale``), or a
            distribution on the positive reals (a latent site ``scale``, inferred with the weights).
        learn_scale: Fit σ by maximising the ELBO.

    Raises:
        ValueError: If ``scale`` is not positive, or both a distribution and to be learned.
    """

    def __init__(self, scale: float | dist.Distribution = 1.0, *, learn_scale: bool = False) -> None:
        super().__init__()
        self.learn_scale = learn_scale
        self._latent = isinstance(scale, dist.Distribution)
        if isinstance(scale, dist.Distribution):
            if learn_scale:
                raise ValueError("scale: give a number to learn it as a parameter, or a prior to infer it, not both.")
            if not is_positive(scale):
                raise ValueError(
                    f"scale: its prior must live on the positive reals (LogNormal, HalfNormal, Gamma …), got "
                    f"{type(scale).__name__}."
                )
            self.add_site("scale", FixedPrior(scale, torch.Size(), "scale"))
            return
        if not scale > 0:
            raise ValueError(f"scale: expected a positive standard deviation, got {scale}.")
        self.add_plain("noise", _NoiseScale(float(scale), learn_scale))

    @pyro_method  # outside of Pyro's context a latent site would be a nameless draw from its prior
    def noise_scale(self) -> Tensor:
        """The present standard deviation (a sample statement where it is latent)."""
        return self.scale if self._latent else self._plain["noise"]()

    def forward(self, outputs: Tensor) -> dist.Distribution:
        """Normal around ``outputs``."""
        self.announce_parameters()
        return dist.Normal(outputs, self.noise_scale()).to_event(outputs.dim() - 1)

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The output itself, and σ²."""
        return outputs, self.noise_scale().square().expand_as(outputs)

    def config(self) -> dict[str, Any]:
        """Constructor arguments; a latent scale's prior is described by its module."""
        return {"learn_scale": self.learn_scale}


class _NoiseScale(nn.Module):
    """A positive number, fixed or trained in log space."""

    def __init__(self, scale: float, learned: bool) -> None:
        super().__init__()
        log_scale = torch.tensor(scale).log()
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Tensor:
        return self.log_scale.exp()


class HeteroscedasticNormal(Likelihood):
    r"""Gaussian noise that depends on the input: outputs ``[B, 2 D]`` are means, then raw scales.

    :math:`\sigma(x) = \mathrm{softplus}(r(x)) + \mathrm{floor}` (Nix & Weigend 1994; Kendall & Gal 2017).

    Args:
        floor: Smallest standard deviation, which keeps the likelihood bounded.
    """

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        if not floor >= 0:
            raise ValueError(f"floor: expected a standard deviation of at least 0, got {floor}.")
        self.floor = float(floor)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        if outputs.dim() < 2 or outputs.shape[-1] % 2:
            raise ValueError(
                f"net: HeteroscedasticNormal expects outputs [B, 2 D], means then raw scales, got shape "
                f"{tuple(outputs.shape)}; give the last layer two outputs per target."
            )
        mean, raw = outputs.chunk(2, -1)
        return mean, F.softplus(raw) + self.floor

    def forward(self, outputs: Tensor) -> dist.Distribution:
        """Normal with the network's own mean and scale."""
        mean, scale = self._split(outputs)
        return dist.Normal(mean, scale).to_event(outputs.dim() - 1)

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The network's mean and variance."""
        mean, scale = self._split(outputs)
        return mean, scale.square()

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """Half of the outputs."""
        return self._split(outputs)[0].shape

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"floor": self.floor}


class Poisson(Likelihood):
    """Counts with rate exp(output)."""

    def forward(self, outputs: Tensor) -> dist.Distribution:
        """Poisson with log-rate ``outputs``."""
        return dist.Poisson(outputs.exp()).to_event(outputs.dim() - 1)

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The rate, twice."""
        rate = outputs.exp()
        return rate, rate

    def from_moments(self, mean: Tensor, variance: Tensor) -> dist.Distribution:
        """Poisson with rate ``mean``."""
        return dist.Poisson(mean)

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Non-negative whole numbers, as floats."""
        self.check_shape(outputs, y)
        if not y.is_floating_point() or not bool(((y >= 0) & (y == y.round()) & y.isfinite()).all()):
            _refuse(self, y, "floating-point counts (0, 1, 2 …)")
