"""Gaussian noise of one scale, or of one for each output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.constant import mean_target
from pyrobnn.model.likelihoods.gaussian_prediction import GaussianPrediction
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.stated import StatedNumbers
from pyrobnn.model.priors import FixedPrior
from pyrobnn.model.priors.base import is_positive

__all__ = ["Normal"]


@explained
class Normal(Likelihood):
    r"""Gaussian noise around the output: :math:`y \sim N(f(x), \sigma^2)`, one σ for all data, or one per output.

    Args:
        scale: The noise's standard deviation. None: learned, from the standard deviation of the targets on
            (:meth:`initialize`; 1 until then). A positive number: fixed, or where learning starts if ``learn_scale``.
            A distribution on the positive reals: a latent site ``scale``, inferred with the weights. Several numbers, a
            tensor or list ``[D]``, or a distribution of that shape, are one for each of the outputs ``[B, D]``. Other
            shapes broadcast to those of a datum's outputs, such as ``[C, 1, 1]`` to images ``[B, C, H, W]``.
        learn_scale: Fit σ by maximizing the ELBO; None means that it is learned where ``scale`` is None. A learned σ is
            a parameter and has no posterior: samplers hold it fixed, and a point estimate that fits the training data
            closely makes it too small. Stop early on held-out data then (``fit(early_stopping=True)``), or give σ a
            prior, such as ``Normal(dist.LogNormal(0.0, 1.0))``.
        shape: Shape of a σ that is not stated, such as ``(D,)`` for one for each of the outputs ``[B, D]``.
        missing: Whether targets may be NaN (not observed), as in :class:`Likelihood`.

    Raises:
        TypeError: If ``scale`` is no number, tensor, list or distribution, or ``learn_scale`` no bool.
        ValueError: If ``scale`` is not positive, or both a distribution and to be learned, or neither stated nor to be
            learned; or ``shape`` holds no positive ints, or a stated scale has one of its own.
    """

    learned = "scale"
    or_else = ", state it, as in Normal(0.5), or give it a prior, as in Normal(dist.LogNormal(0.0, 1.0))"

    def __init__(
        self,
        scale: float | Tensor | list[Any] | dist.Distribution | None = None,
        *,
        learn_scale: bool | None = None,
        shape: Sequence[int] = (),
        missing: bool = False,
    ) -> None:
        super().__init__(missing=missing)
        if learn_scale is not None and not isinstance(learn_scale, bool):
            raise TypeError(f"learn_scale: expected True, False or None, got {learn_scale!r}.")
        self.learn_scale = scale is None if learn_scale is None else learn_scale
        self.is_stated = scale is not None
        self._latent = isinstance(scale, dist.Distribution)
        if scale is None:
            if not self.learn_scale:
                raise ValueError("scale: state the standard deviation that is not to be learned, as in Normal(0.5).")
            ones = torch.ones(_checked_shape(shape), dtype=torch.float64)
            self.add_plain("noise", _NoiseScale(ones, torch.get_default_dtype(), True))
            return
        if tuple(shape):
            raise ValueError("shape: it is that of a scale that is not stated; a stated one has a shape of its own.")
        if isinstance(scale, dist.Distribution):
            if learn_scale:
                raise ValueError("scale: give a number to learn it as a parameter, or a prior to infer it, not both.")
            if not is_positive(scale):
                raise ValueError(
                    f"scale: its prior must have support on the positive reals (LogNormal, HalfNormal, Gamma …), got "
                    f"{type(scale).__name__}."
                )
            self.add_site("scale", FixedPrior(scale, scale.shape(), "scale"))  # type: ignore[attr-defined]
            return
        dtype = scale.dtype if isinstance(scale, Tensor) and scale.is_floating_point() else torch.get_default_dtype()
        self.add_plain("noise", _NoiseScale(_as_scale(scale).double(), dtype, self.learn_scale))

    @torch.no_grad()
    def initialize(self, targets: Tensor) -> None:
        """Starts a σ that was neither stated nor trained at the standard deviation of the targets ``[B, ...]``.

        Each output's deviation is that from its own mean, over those observed; one σ for several outputs is their root
        mean square. Targets that are all equal, or a single one, have no deviation, so that their size is taken.
        """
        if not self.untrained:
            return
        noise: Any = self._plain["noise"]
        found = _deviation(targets, noise.log_scale.shape)
        if found is not None:
            noise.log_scale.copy_(found.log())

    @property
    def untrained(self) -> bool:
        """Whether σ was not stated, and still is exactly 1, as before any target was seen."""
        noise: Any = self._plain.get("noise")
        return not self.is_stated and bool((noise.log_scale == 0).all())

    @pyro_method  # outside of Pyro's context a latent site would be a nameless draw from its prior
    def noise_scale(self) -> Tensor:
        """The present standard deviation, of the shape it was given in (a sample statement where it is latent)."""
        return self.scale if self._latent else self._plain["noise"]()

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The outputs as ``loc``, and σ as ``scale``."""
        return {"loc": outputs, "scale": self._scale_of(outputs)}

    def _scale_of(self, outputs: Tensor) -> Tensor:
        """σ of each output."""
        scale = self.noise_scale()
        if scale.dim():  # must not broadcast along the data
            shape = outputs.shape[1:]
            if scale.dim() > len(shape) or any(
                n not in (1, m) for n, m in zip(reversed(scale.shape), reversed(shape), strict=False)
            ):
                raise ValueError(
                    f"scale: its shape {tuple(scale.shape)} does not fit the outputs of a datum, {tuple(shape)} (the "
                    f"network's outputs have shape {tuple(outputs.shape)}); give one standard deviation, or one for "
                    "each output."
                )
        return scale.expand(outputs.shape).to(torch.promote_types(scale.dtype, outputs.dtype))

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.Normal:
        """Normal with ``loc`` and ``scale``."""
        return dist.Normal(parameters["loc"], parameters["scale"])

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """``1 / σ²``."""
        if type(self) is not Normal:  # a subclass may have another density
            return super().fisher_information(outputs)
        return FisherInformation.of_independent(self._scale_of(outputs).square().reciprocal())

    @property
    def has_closed_form(self) -> bool:
        """Not of a subclass, which may have another density."""
        return type(self) is Normal

    def closed_form(self, outputs: Tensor, covariance: Tensor, num_samples: int) -> Prediction | None:
        """Gaussian: the outputs' covariance and the noise add up."""
        if not self.has_closed_form:
            return None
        aleatoric = self._scale_of(outputs).square()
        epistemic = covariance.diagonal(dim1=-2, dim2=-1).reshape(outputs.shape)
        return GaussianPrediction(
            mean=outputs,
            total=aleatoric + epistemic,
            aleatoric=aleatoric,
            epistemic=epistemic,
            num_samples=num_samples,
            likelihood=self,
            covariance=covariance + torch.diag_embed(aleatoric.reshape(outputs.shape[0], -1)),
        )

    @property
    def is_concave(self) -> bool:
        """It is a parabola."""
        return type(self) is Normal

    def constant_outputs(self, outputs: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """The mean of the targets."""
        if type(self) is not Normal:  # a subclass may have another density
            return super().constant_outputs(outputs, y, weight)
        return mean_target(self, y, weight).to(outputs.dtype)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """That of the outputs."""
        return outputs.shape

    def config(self) -> dict[str, Any]:
        """Constructor arguments; ones for a stated scale, whose numbers are state. A latent one's prior is a module."""
        scale: dict[str, Any] = {}
        if not self.is_stated:
            scale = {"shape": list(self.noise_scale().shape)}
        elif not self._latent:
            scale = {"scale": torch.ones_like(self.noise_scale()).tolist()}
        return {**scale, "learn_scale": self.learn_scale, **super().config()}


def _checked_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (None,)
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"shape: expected the shape of the scale, positive ints such as (3,), got {shape!r}.")
    return sizes


def _deviation(targets: Tensor, shape: torch.Size) -> Tensor | None:
    """Standard deviation of targets ``[B, ...]`` in a shape that broadcasts to a row; None where it cannot be told."""
    y = targets.detach().double()
    known = y.isfinite()
    fits = len(shape) < y.dim() and all(n in (1, m) for n, m in zip(reversed(shape), reversed(y.shape), strict=False))
    if not fits or not bool(known.any()):
        return None  # the model's next run refuses a shape that does not fit
    y = y.masked_fill(~known, 0.0)
    count = known.sum(0)
    centered = (y - y.sum(0) / count.clamp(min=1)).masked_fill(~known, 0.0)

    def pooled(rows: Tensor) -> Tensor:
        """Sums over what shares one number."""
        return rows.sum_to_size(shape) if rows.shape != shape else rows

    size = (pooled(y.square().sum(0)) / pooled(count).clamp(min=1)).sqrt()
    deviation = (pooled(centered.square().sum(0)) / pooled((count - 1).clamp(min=0)).clamp(min=1)).sqrt()
    constant = deviation <= 1e-6 * size  # rounding alone gives equal numbers some deviation
    return torch.where(constant, torch.where(size > 0, size, 1.0), deviation)


def _as_scale(scale: Any) -> Tensor:
    if isinstance(scale, bool | str):
        raise TypeError(f"scale: expected a standard deviation, a tensor of them, or a distribution, got {scale!r}.")
    try:
        found = torch.as_tensor(scale, dtype=None if isinstance(scale, Tensor) else torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"scale: expected a standard deviation, a tensor of them, or a distribution, got {scale!r}."
        ) from error
    if found.is_complex() or not bool(((found > 0) & found.isfinite()).all()) or not found.numel():
        raise ValueError(f"scale: expected a positive standard deviation, got {scale}.")
    return found


class _NoiseScale(StatedNumbers):
    """Positive numbers, fixed or trained in log space."""

    def __init__(self, scale: Tensor, dtype: torch.dtype, learned: bool) -> None:
        super().__init__(scale.log())
        log_scale = scale.log().to(dtype)
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def numbers(self) -> Tensor:
        return self.log_scale

    def forward(self) -> Tensor:
        return self.log_scale.exp()
