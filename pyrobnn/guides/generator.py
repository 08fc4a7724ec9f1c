r"""A generator of weights as a posterior: an implicit distribution, draws without a density.

.. math::  w = m + s \odot u, \qquad u = G_\phi(z) \quad\text{or}\quad u = G_\phi(z) B, \qquad z \sim N(0, I),

with a perceptron :math:`G_\phi` and, for each weight, the mean m and standard deviation s of the draws that it learned
from. It makes weights, or coordinates along the rows of B, the principal axes of those draws.
:func:`pyrobnn.distill` trains one to reproduce the draws of a Markov chain, whose storage it replaces; it then draws as
many functions as one likes, K of them by one chain of matrix products. Constrained sites are generated in unconstrained
space.

Nothing is known of the density of ``w``, so there is neither ``log_prob`` nor an ELBO: asking for one is an error.
Buffers of the network, such as running statistics, are not generated; the model's own are used.

Wang et al., *Adversarial Distillation of Bayesian Neural Network Posteriors* (2018).
"""

# Pyro declares the attributes of torch distributions on subclasses only.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.base import Guide, sample_site
from pyrobnn.guides.components.generated import Generated, Storage, refuse_density
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import initial_values
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import Step

__all__ = ["Generator", "perceptron"]


@explained
class Generator(Guide):
    """Draws that a network makes of noise.

    Freshly built it generates noise about the priors' centers; :func:`pyrobnn.distill` trains it.

    Args:
        model: The Pyro model; or a guide of it, for the same sites.
        hidden: Widths of the generator's hidden layers, which are of SiLU units: smooth critics and generators learn
            covariances that ReLU ones miss. Without components the last one makes up its size: (width + 3) numbers for
            each weight.
        latent_dim: Length of the noise z.
        components: Number C of axes, for which (C + 2) numbers are kept for each weight; None: it makes the weights
            themselves.
        num_samples: Number of draws that it replaces, for :meth:`storage`.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Attributes:
        loc, scale: Mean and standard deviation ``[P]`` of the draws it learned from, in the order of the layout;
            where the scale is zero, all draws are alike.
        basis: The axes ``[C, P]``, in standardized weights; None without components.
        history: The record of :func:`pyrobnn.distill`, else None. It is not saved in the state dict.

    Raises:
        ValueError: If a size is not positive.
    """

    loc: Tensor
    scale: Tensor
    basis: Tensor | None

    sizes = ("hidden", "components")

    def __init__(
        self,
        model: Callable[..., Any] | Layout,
        hidden: Sequence[int] = (100, 100, 100),
        latent_dim: int = 32,
        *,
        components: int | None = None,
        num_samples: int | None = None,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        check_positive_int("latent_dim", latent_dim)
        for name, count in (("components", components), ("num_samples", num_samples)):
            if count is not None:
                check_positive_int(name, count)
        super().__init__(model, example=example, sites=sites)
        center = self.layout.join(initial_values(model, self.layout, "prior_mean"))
        self.hidden, self.latent_dim, self.num_samples = check_hidden("hidden", hidden), latent_dim, num_samples
        self.components = components
        self.num_coordinates = self.layout.size if components is None else components
        self.network = perceptron([latent_dim, *self.hidden, self.num_coordinates]).to(center)
        self.register_buffer("loc", center)
        self.register_buffer("scale", torch.ones_like(center))
        axes = (
            None
            if components is None
            else torch.randn(components, self.layout.size, device="cpu").to(center) / components**0.5
        )
        self.register_buffer("basis", axes)
        self.history: Any = None

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        sizes = {"latent_dim": self.latent_dim, "components": self.components, "num_samples": self.num_samples}
        return {"hidden": list(self.hidden), **sizes}

    # -------------------------------------------------------------------------------------------------- storage

    @property
    def num_parameters(self) -> int:
        """Numbers that are kept of it: parameters and buffers."""
        return sum(tensor.numel() for tensor in self.state_dict().values())

    def storage(self, num_samples: int | None = None) -> Storage:
        """Its size, compared with ``num_samples`` stored draws (None: those that it was distilled from)."""
        return Storage(self.num_parameters, self.num_samples if num_samples is None else num_samples, self.layout.size)

    @property
    def storage_ratio(self) -> float | None:
        """Its size over that of the draws it replaces; None where their number is not known."""
        return self.storage().ratio

    # ---------------------------------------------------------------------------------------------------- draws

    def coordinates(self, num_samples: int) -> Tensor:
        """Outputs ``[K, C]`` of the network for new noise, with gradients; standardized weights without axes."""
        loc = self._buffers["loc"]
        assert loc is not None
        network = self._modules["network"]  # past Pyro's attribute hooks
        return network(torch.randn(num_samples, self.latent_dim, dtype=loc.dtype, device=loc.device))  # type: ignore[misc]

    def standardized(self, num_samples: int) -> Tensor:
        """Draws ``[K, P]`` with gradients: unconstrained weights less ``loc``, over ``scale``."""
        made, axes = self.coordinates(num_samples), self._buffers["basis"]
        return made if axes is None else made @ axes

    def flat(self, num_samples: int) -> Tensor:
        """Draws ``[K, P]`` of unconstrained flat vectors, with gradients."""
        return torch.addcmul(self._buffers["loc"], self.standardized(num_samples), self._buffers["scale"])  # type: ignore[arg-type]

    @torch.no_grad()
    def move_coordinates(self, mean: Tensor, factor: Tensor) -> None:
        """Turns coordinates c into ``(c - mean) factor``, ``[C]`` each, by rescaling the axes."""
        if self.basis is None:
            self.scale.mul_(factor)
            self.loc.sub_(self.scale * mean)
        else:
            self.basis.mul_(factor.unsqueeze(1))
            self.loc.sub_(self.scale * (mean @ self.basis))

    @property
    def facts(self) -> Facts:
        """Draws without a density; all sites depend on each other."""
        names = frozenset(self.layout)
        return Facts(sites=names, independent=(names,))

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One draw with gradients."""
        return Draws(self.layout.constrain(self.layout.split(self.flat(1)[0])))

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``, independent of each other."""
        return Draws(self.layout.constrain(self.layout.split(self.flat(num_samples))))

    def marginal(self, name: str) -> dist.Distribution:
        """The site's distribution, which can be drawn from and nothing else."""
        return Generated(self.layout[name], draw=lambda count: self.sample(count)[name])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: the sites of one draw, whose densities are refused."""
        self.announce_parameters()
        values = self.rsample()
        return {name: sample_site(site, Generated(site, value=values[name])) for name, site in self.layout.items()}

    # ------------------------------------------------------------------------------------------------- refusals

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Refused: an implicit distribution has no density that could be computed.

        Raises:
            NotImplementedError: Always.
        """
        refuse_density()

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """Refused: without a density there is no KL, and so no ELBO.

        Raises:
            NotImplementedError: Always.
        """
        refuse_density()

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """Refused: without a density there is no ELBO to train it by.

        Raises:
            NotImplementedError: Always.
        """
        refuse_density()


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """SiLU units between linear layers, started so that outputs have about unit variance for unit noise."""
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out)
        is_last = index == len(sizes) - 2
        nn.init.normal_(layer.weight, std=((1.0 if is_last else 2.0) / fan_in) ** 0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer] if is_last else [layer, nn.SiLU()]
    return nn.Sequential(*layers)


def check_hidden(name: str, hidden: Any) -> tuple[int, ...]:
    """Widths of hidden layers as a tuple.

    Raises:
        TypeError: If they are no sequence.
        ValueError: If one is not positive.
    """
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise TypeError(f"{name}: expected a sequence of widths such as (100, 100, 100), got {hidden!r}.")
    for width in hidden:
        check_positive_int(name, width)
    return tuple(hidden)
