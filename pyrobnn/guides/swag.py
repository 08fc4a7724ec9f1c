r"""SWAG: a Gaussian from the trajectory of stochastic gradient descent.

Train to a good point, go on with SGD at a constant, rather high learning rate, and collect an iterate
:math:`\theta_i` now and then. With their mean :math:`\bar\theta`, their variance by element and the last r
deviations from the running mean, as columns of :math:`\hat D`, the posterior is

.. math::  q(\theta) = N\!\left(\bar\theta,\; \tfrac12 \mathrm{diag}(\overline{\theta^2} - \bar\theta^2)
           + \tfrac{1}{2 (r - 1)} \hat D \hat D^\top\right).

The halves are the paper's: diagonal and low-rank part are two estimates of one covariance, and their mean is
taken. The diagonal part alone is SWAG-Diagonal, the mean alone stochastic weight averaging (Izmailov et al. 2018).

Maddox, Garipov, Izmailov, Vetrov & Wilson, *A Simple Baseline for Bayesian Uncertainty in Deep Learning* (2019).
Vectors are those of :math:`u`, the sites' unconstrained values. The running variance is kept centered (Welford),
equal to the difference of moments but without its cancellation; elements that never moved keep the reference
implementation's floor of 1e-30.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int, check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.moments import add_rows
from pyrobnn.guides.base import sample_site
from pyrobnn.guides.components.low_rank import (
    LowRankGaussian,
    independent_normal,
    joint_divergence,
    joint_log_prob,
    on_support,
    sample_jointly,
)
from pyrobnn.guides.components.point import TrainedAsPoint
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import Init, initial_values

__all__ = ["SWAG"]

_SMALLEST_VARIANCE = 1e-30


@explained
class SWAG(TrainedAsPoint):
    """A point while it is trained, the Gaussian of its collected iterates afterward.

    Training is that of :class:`~pyrobnn.guides.MAP` (with the density of unconstrained values, of which the Gaussian
    is one)::

        guide = SWAG(model)
        sgd = functools.partial(torch.optim.SGD, momentum=0.9)
        fit(model, guide, loader, epochs=60, lr=0.05, optimizer=sgd, callbacks=[guide.collector(start=40)])
        recalibrate_batch_norm(model, guide, loader)  # where there is BatchNorm: its statistics are the last iterate's

    :meth:`sample`, and so everything that predicts, needs at least two iterates; for validation during the training
    before that, fit a ``MAP`` and start from its network. A call of the guide, as Pyro makes it, samples the point in
    training mode (the default of modules) and the Gaussian after ``guide.eval()``. Only latent sites are
    averaged; parameters that the model trains as points stay where the last step left them.

    Args:
        model: The Pyro model.
        init: Where to start, as for :class:`~pyrobnn.guides.MeanField`.
        rank: Number of deviations kept, the latest ones; memory is ``rank + 3`` times that of the weights.
        scale: Factor of the draws' distance from the mean; its square multiplies the covariance.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Attributes:
        num_collected: Number of iterates so far, an integer tensor.
        mean: Their mean, ``[d]``.
        variance: Their variance by element (divided by their number), ``[d]``.
        deviations: The latest deviations from the running mean, ``[rank, d]``; iterate i is in row ``i % rank``.

    Raises:
        ValueError: If ``rank`` is no int of at least 2 or ``scale`` is not positive.
    """

    jacobian = True

    sizes = ("rank",)

    def __init__(
        self,
        model: Callable[..., Any],
        init: Init = None,
        *,
        rank: int = 20,
        scale: float = 1.0,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        self.loc = nn.Parameter(self.layout.join(initial_values(model, self.layout, init)))
        check_int("rank", rank, 2)  # a covariance's least
        check_positive("scale", scale, "factor")
        self.rank, self.scale = rank, float(scale)
        like = self.flat_loc.detach()
        self.register_buffer("num_collected", torch.zeros((), dtype=torch.long, device=like.device))
        self.register_buffer("mean", torch.zeros_like(like))
        self.register_buffer("variance", torch.zeros_like(like))
        self.register_buffer("deviations", like.new_zeros(rank, self.layout.size))

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

    @property
    def is_ready(self) -> bool:
        """Whether there are two iterates, the least that a Gaussian takes."""
        return int(self.num_collected) >= 2

    @property
    def facts(self) -> Facts:
        """A point before there are two iterates, then one joint Gaussian; trained as a point in either case."""
        if not self.is_ready:
            return replace(super().facts, is_ready=False)
        names = frozenset(self.layout)
        return Facts(sites=names, density=names, independent=(names,))

    def joint(self, name: str | None = None) -> LowRankGaussian:
        """The distribution of the flat unconstrained vector, or of one site's part of it.

        Raises:
            ValueError: If fewer than two iterates have been collected.
        """
        count = int(self.num_collected)
        if not self.is_ready:
            raise ValueError(
                f"guide: SWAG has collected {count} of the 2 iterates that a Gaussian takes at least; pass "
                "callbacks=[guide.collector(start=...)] to fit, or call guide.collect() in a training loop of your own."
            )
        window = slice(None) if name is None else self.layout[name].window
        shape = (self.layout.size,) if name is None else self.layout[name].unconstrained_shape
        used = min(count, self.rank)
        diagonal = (0.5 * self.variance[window]).clamp(min=_SMALLEST_VARIANCE)
        factor = self.deviations[:used, window] * (self.scale * (0.5 / (used - 1)) ** 0.5)
        return LowRankGaussian(
            self.mean[window].reshape(shape),
            diagonal.sqrt().mul(self.scale).reshape(shape),
            factor.T.reshape(*shape, used),
        )

    def marginal(self, name: str) -> dist.Distribution:
        """The site's marginal, which couples its elements; the point while there are fewer than two iterates."""
        return on_support(self.layout[name], self.joint(name)) if self.is_ready else self.point_marginal(name)

    def elementwise_marginal(self, name: str) -> dist.Distribution:
        """Each element of the site by itself; the point while there are fewer than two iterates."""
        if not self.is_ready:
            return self.point_marginal(name)
        gaussian = self.joint(name)
        return independent_normal(self.layout[name], gaussian.mean, gaussian.variance.sqrt())

    def starting_point(self) -> Draws:
        """The mean of the iterates, where other guides start; the point while there are fewer than two."""
        if not self.is_ready:
            return super().starting_point()
        return Draws(self.layout.constrain(self.layout.split(self.joint().mean)))

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One draw of the Gaussian, whose parameters are not trained.

        Raises:
            ValueError: If fewer than two iterates have been collected.
        """
        return Draws(self.layout.constrain(self.layout.split(self.joint().rsample())))

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}`` of the Gaussian.

        Raises:
            ValueError: If fewer than two iterates have been collected.
        """
        return Draws(self.layout.constrain(self.layout.split(self.joint().rsample((num_samples,)))))

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Joint log density of draws on the sites' own supports, shape ``[K]``.

        Raises:
            ValueError: If fewer than two iterates have been collected.
        """
        return joint_log_prob(self.layout, self.joint(), draws)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The KL of the Gaussian; ``-log p`` of the point while there are fewer than two iterates."""
        if not self.is_ready:
            return self.point_divergence(draws, priors)
        gaussian = self.joint()
        means, variances = (self.layout.split(flat) for flat in (gaussian.mean, gaussian.variance))
        return joint_divergence(
            self.layout, lambda name: (means[name], variances[name]), gaussian.entropy(), draws, priors
        )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: the point in training mode, else the Gaussian through an auxiliary site."""
        self.announce_parameters()
        if self.training:
            return {name: sample_site(site, self.point_marginal(name)) for name, site in self.layout.items()}
        return sample_jointly(self.layout, self.joint())
