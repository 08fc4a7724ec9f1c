r"""Mean-field Gaussian posterior (Bayes by Backprop).

.. math::  q(w) = \prod_i N(w_i; \mu_i, \sigma_i^2), \qquad \sigma = e^{\psi},

over the unconstrained values of all latent sites (a site on the positive reals is log-normal, and so on). For a
Normal prior :math:`N(m, s^2)` the KL is closed,

.. math::  \mathrm{KL} = \sum_i \log\frac{s_i}{\sigma_i} + \frac{\sigma_i^2 + (\mu_i - m_i)^2}{2 s_i^2} - \frac12.

Graves (2011); Blundell, Cornebise, Kavukcuoglu & Wierstra, *Weight Uncertainty in Neural Networks* (2015).
Parameters are two flat vectors of length ``layout.size``; a training step is one
node of the graph (:mod:`pyrobnn.steps.mean_field`), at a fifth of the cost of one distribution per site.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.core.prefetch import prefetched
from pyrobnn.core.standard_normals import fill_standard_normals
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.base import Guide
from pyrobnn.guides.components.low_rank import independent_normal
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import Init, initial_values
from pyrobnn.steps.base import Step
from pyrobnn.steps.mean_field import MeanFieldStep
from pyrobnn.steps.plain_mean_field import PlainMeanFieldStep

__all__ = ["MeanField"]


@explained
class MeanField(Guide):
    """Independent Gaussians over the model's latent sites.

    Args:
        model: The Pyro model.
        init: Where the means start: None (the weights the network was converted with), another network, another guide
            (its mean or point; the first member of an ensemble; the last draw of the first chain), ``"he"`` (fresh
            weights of He's scale, for deep networks of ReLUs that were not trained yet), ``"prior"``,
            ``"prior_mean"``, a dict of site values, draws (the first), or a function ``(name, prior) -> value``.
        init_scale: Starting standard deviation in unconstrained space; small, because a deep network fed with
            large weight noise does not train.
        antithetic: In training steps, eight consecutive draws share one block of random numbers: the quarters of the
            flat vector have the signs of four orthogonal (Hadamard) rows, each followed by its negative. First-order
            noise cancels in each pair; second-order noise averages as over four independent pairs; and random numbers
            cost an eighth. At fixed parameters each draw is distributed as q
            and each gradient unbiased. Across a parameter update later draws depend on earlier ones, an effect of
            the order of the learning rate; with ``num_particles`` a multiple of eight there is none.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Raises:
        ValueError: If ``init_scale`` is not positive or a starting value does not fit.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init: Init = None,
        *,
        init_scale: float = 1e-2,
        antithetic: bool = True,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        check_positive("init_scale", init_scale, "standard deviation")
        loc = self.layout.join(initial_values(model, self.layout, init))
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(init_scale)))
        self.antithetic = antithetic

    # The flat parameters are read through these, past Pyro's attribute hooks (which would enter them in the
    # global parameter store).

    @property
    def flat_loc(self) -> nn.Parameter:
        """Means of the flat vector."""
        return self._parameters["loc"]  # type: ignore[return-value]

    @property
    def flat_log_scale(self) -> nn.Parameter:
        """Log standard deviations of the flat vector."""
        return self._parameters["log_scale"]  # type: ignore[return-value]

    def scale_parameters(self) -> list[nn.Parameter]:
        """The parameters that are (log) scales, for a learning rate of their own."""
        return [self.flat_log_scale]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"antithetic": self.antithetic}

    @property
    def facts(self) -> Facts:
        """Independent sites with densities; the real ones are Gaussian."""
        names = frozenset(self.layout)
        return Facts(
            sites=names,
            density=names,
            independent=tuple(frozenset({name}) for name in self.layout),
            gaussian=frozenset(name for name, site in self.layout.items() if site.is_real),
            noise_size=self.layout.size,
        )

    def marginal(self, name: str) -> dist.Distribution:
        """The site's Gaussian, pushed through the transform to its support."""
        site = self.layout[name]
        loc = self.flat_loc[site.window].view(site.unconstrained_shape)
        scale = self.flat_log_scale[site.window].view(site.unconstrained_shape).exp()
        return independent_normal(site, loc, scale)

    def starting_point(self) -> Draws:
        """The means, where other guides start."""
        return Draws(self.layout.constrain(self.layout.split(self.flat_loc.detach())))

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One reparameterized draw, ``μ + σε``; ``noise`` is ε as a flat vector if it is given."""
        noise = torch.randn_like(self.flat_loc) if noise is None else noise
        flat = self.flat_loc + self.flat_log_scale.exp() * noise
        return Draws(self.layout.constrain(self.layout.split(flat)))

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """One node of the graph from the flat parameters to the sites' values."""
        if not sequential and not estimators:
            return PlainMeanFieldStep(self.layout, lambda: (self.flat_loc, self.flat_log_scale), self.marginal)
        if not sequential:
            return super().step(model, estimators, sequential=False)
        parameters = self.flat_loc, self.flat_log_scale
        return MeanFieldStep(self.layout, *parameters, self.marginal, estimators, antithetic=self.antithetic)

    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``, one block of random numbers for all of them."""
        memory = self.flat_loc.new_empty((num_samples, self.layout.size))
        return self._draw_into(memory, self.flat_log_scale.detach().exp(), None)

    def sample_blocks(self, sizes: Iterable[int], *, reuse_memory: bool = False) -> Iterator[Draws]:
        """Blocks of draws; torch's random state gives a seed. If torch uses several threads, one more draws ahead."""
        device = self.flat_loc.device
        generator = torch.Generator(device).manual_seed(random_state.fresh_seed())
        scale, sizes = self.flat_log_scale.detach().exp(), list(sizes)
        is_ahead = device.type == "cpu" and torch.get_num_threads() > 1
        # Page faults of fresh memory can take as long as the random numbers. Blocks in turn are one allocation, which
        # an allocator keeps for the next prediction more readily than two.
        memory = scale.new_empty((1 + is_ahead, max(sizes), len(scale))) if reuse_memory and len(sizes) > 1 else ()
        # By .data each has a version of its own: a change of one does not look like a change of the other.
        blocks = itertools.cycle([block.data for block in memory])

        def make(size: int) -> Draws:
            block = next(blocks, None)
            drawn = scale.new_empty((size, len(scale))) if block is None else block[:size]
            return self._draw_into(drawn, scale, generator)

        yield from prefetched(make, sizes) if is_ahead else map(make, sizes)

    @torch.no_grad()
    def _draw_into(self, memory: Tensor, scale: Tensor, generator: torch.Generator | None) -> Draws:
        """Overwrites ``memory [K, size]`` by draws."""
        noise = memory.normal_() if generator is None else fill_standard_normals(memory, generator)
        flat = torch.addcmul(self.flat_loc, noise, scale, out=noise)
        return Draws(self.layout.constrain(self.layout.split(flat)))
