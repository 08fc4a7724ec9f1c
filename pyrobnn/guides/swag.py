r"""SWAG: a Gaussian from the trajectory of stochastic gradient descent.

Train to a good point, go on with SGD at a constant, rather high learning rate, and collect an iterate
:math:`\theta_i` now and then. With their mean :math:`\bar\theta`, their variance by element and the last r
deviations from the running mean, as columns of :math:`\hat D`, the posterior is

.. math::  q(\theta) = N\!\left(\bar\theta,\; \tfrac12 \mathrm{diag}(\overline{\theta^2} - \bar\theta^2)
           + \tfrac{1}{2 (r - 1)} \hat D \hat D^\top\right).

The halves are the paper's: diagonal and low-rank part are two estimates of one covariance, and their mean is
taken. The diagonal part alone is SWAG-Diagonal, the mean alone stochastic weight averaging (Izmailov et al. 2018).

Maddox, Garipov, Izmailov, Vetrov & Wilson, *A Simple Baseline for Bayesian Uncertainty in Deep Learning* (2019).
Vectors are those of :math:`u`, the sites' unconstrained values. The running variance is kept centred (Welford),
equal to the difference of moments but without its cancellation; elements that never moved keep the reference
implementation's floor of 1e-30.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.arguments import check_int, check_positive, check_positive_int
from pyrobnn.guides.base import Init, Site
from pyrobnn.guides.low_rank import LowRankGaussian, joint_log_prob, on_support, sample_jointly
from pyrobnn.guides.map import Map
from pyrobnn.moments import add_rows

__all__ = ["SWAG"]

_SMALLEST_VARIANCE = 1e-30


class SWAG(Map):
    """A point while it is trained, the Gaussian of its collected iterates afterwards.

    Training is that of :class:`~pyrobnn.guides.Map` (with the density of unconstrained values, of which the Gaussian
    is one)::

        guide = SWAG(model)
        sgd = functools.partial(torch.optim.SGD, momentum=0.9)
        fit(model, guide, loader, epochs=60, lr=0.05, optimizer=sgd, callbacks=[guide.collector(start=40)])
        recalibrate_batch_norm(model, guide, loader)  # where there is BatchNorm: its statistics are the last iterate's

    :meth:`sample`, and so everything that predicts, needs at least two iterates; for validation during the training
    before that, fit a ``Map`` and start from its network. Pyro's view, a call of the guide, follows its mode: the
    point in training mode (how every module starts), the Gaussian after ``guide.eval()``. Only latent sites are
    averaged; parameters that the model trains as points stay where the last step left them.

    Args:
        model: The Pyro model.
        init: Where to start, as for :class:`~pyrobnn.guides.MeanField`.
        rank: Number of deviations kept, the latest ones; memory is ``rank + 3`` times that of the weights.
        scale: Factor of the draws' distance from the mean; its square multiplies the covariance.
        example: Arguments of one run, for models whose sites are not known without data.
        only: Names of the sites that the guide is for; all of them if None.

    Attributes:
        num_collected: Number of iterates so far, an integer tensor.
        mean: Their mean, ``[d]``.
        variance: Their variance by element (divided by their number), ``[d]``.
        deviations: The latest deviations from the running mean, ``[rank, d]``; iterate i is in row ``i % rank``.

    Raises:
        ValueError: If ``rank`` is no int of at least 2 or ``scale`` is not positive.
    """

    has_density: ClassVar[bool] = True

    def __init__(
        self,
        model: Callable[..., Any],
        init: Init = None,
        *,
        rank: int = 20,
        scale: float = 1.0,
        example: tuple[Any, ...] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, init, jacobian=True, example=example, only=only)
        check_int("rank", rank, 2)  # a covariance's least
        check_positive("scale", scale, "factor")
        self.rank, self.scale = rank, float(scale)
        like = self.flat_loc.detach()
        self.register_buffer("num_collected", torch.zeros((), dtype=torch.long, device=like.device))
        self.register_buffer("mean", torch.zeros_like(like))
        self.register_buffer("variance", torch.zeros_like(like))
        self.register_buffer("deviations", like.new_zeros(rank, self.num_latents))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"rank": self.rank, "scale": self.scale}

    # ---------------------------------------------------------------------------------------- collecting

    @torch.no_grad()
    def collect(self) -> None:
        """Adds the present point to the trajectory."""
        iterate, count = self.flat_loc, int(self.num_collected)
        count = add_rows(count, self.mean, self.variance.mul_(count), iterate.unsqueeze(0))
        self.variance.div_(count)
        self.deviations[(count - 1) % self.rank] = iterate - self.mean
        self.num_collected.fill_(count)

    def collector(self, start: int, every: int = 1) -> Callable[[Any], None]:
        """A callback for :func:`pyrobnn.fit` that collects at the end of epochs.

        Args:
            start: Epochs before the trajectory begins.
            every: Collect once in so many epochs after that, the first time after epoch ``start + every``.

        Raises:
            ValueError: If ``start`` is negative or ``every`` is not positive.
        """
        check_int("start", start, 0)
        check_positive_int("every", every)

        def collect_after_epoch(history: Any) -> None:
            if history.epochs > start and (history.epochs - start) % every == 0:
                self.collect()

        return collect_after_epoch

    # -------------------------------------------------------------------------------------- distribution

    def gaussian(self, site: Site | None = None) -> LowRankGaussian:
        """The distribution of the flat unconstrained vector, or of one site's part of it.

        Raises:
            ValueError: If fewer than two iterates have been collected.
        """
        count = int(self.num_collected)
        if count < 2:
            raise ValueError(
                f"guide: SWAG has collected {count} of the 2 iterates that a Gaussian takes at least; pass "
                "callbacks=[guide.collector(start=...)] to fit, or call guide.collect() in a training loop of your own."
            )
        window = slice(None) if site is None else slice(site.offset, site.offset + site.numel)
        shape = (self.num_latents,) if site is None else site.unconstrained_shape
        kept = min(count, self.rank)
        diagonal = (0.5 * self.variance[window]).clamp(min=_SMALLEST_VARIANCE)
        factor = self.deviations[:kept, window] * (self.scale * (0.5 / (kept - 1)) ** 0.5)
        return LowRankGaussian(
            self.mean[window].reshape(shape),
            diagonal.sqrt().mul(self.scale).reshape(shape),
            factor.T.reshape(*shape, kept),
        )

    def factor(self, site: Site) -> dist.Distribution:
        """The site's marginal, which couples its elements; the point while there are fewer than two iterates."""
        return on_support(site, self.gaussian(site)) if int(self.num_collected) >= 2 else super().factor(site)

    @torch.no_grad()
    def sample(self, num_samples: int) -> dict[str, Tensor]:
        """Draws ``{site: [num_samples, *site shape]}`` of the Gaussian.

        Raises:
            ValueError: If fewer than two iterates have been collected.
        """
        return self.constrain(self.split(self.gaussian().rsample((num_samples,))))

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Joint log density of draws on the sites' own supports, shape ``[K]``.

        Raises:
            ValueError: If fewer than two iterates have been collected.
        """
        return joint_log_prob(self, self.gaussian(), draws)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Pyro's view: the point in training mode, else a draw of the Gaussian through an auxiliary site."""
        self.announce_parameters()
        if self.training:
            return {site.name: self._sample_site(site, super(SWAG, self).factor(site)) for site in self.sites.values()}
        return sample_jointly(self, self.gaussian())
