r"""A normalizing flow over all latent elements jointly, for posteriors that no Gaussian resembles.

.. math::  u = \mu + \sigma \odot (I + B)\, T(z), \quad z \sim N(0, I), \qquad
           \log q(u) = \log N(z) - \log |\det T'(z)| - \sum_i \log \sigma_i,

with B strictly lower triangular, so that at :math:`T = \mathrm{id}`, where training starts, q is a Gaussian of any
covariance, and T a stack of coupling layers (Dinh et al. 2017; Durkan et al. 2019; Rezende & Mohamed 2015). Both T and
its inverse take one pass, so that draws and the density of any weights are exact and cheap. B is d × d, and coupling
networks see half of all elements: it is made for the last layer, or a few small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.extras import import_zuko
from pyrobnn.guides.base import Guide
from pyrobnn.guides.components.generated import Generated
from pyrobnn.guides.components.low_rank import joint_log_prob, sample_jointly
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import Init, initial_values
from pyrobnn.model.likelihoods.flow_maps import MIN_SLOPE, Maps

__all__ = ["NormalizingFlow"]


@explained
class NormalizingFlow(Guide):
    """A flow over all sites of the guide jointly. Needs the extra ``flows``.

    For a network of more than ``max_latents`` weights give it the last layer of a
    :class:`~pyrobnn.guides.Composite`, such as ``[("net.2.*", NormalizingFlow), ("*", MeanField)]``.

    Args:
        model: The Pyro model.
        num_transforms: Number of coupling layers.
        init: Where the mean starts, as for :class:`~pyrobnn.guides.MeanField`.
        transform: What a coupling layer does to its elements: ``"spline"`` (on 5 standard deviations, the identity
            beyond) or ``"affine"``.
        hidden: Widths of the hidden layers of the coupling networks.
        init_scale: Starting standard deviation in unconstrained space.
        max_latents: The most latent elements that the guide is made for.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Raises:
        ImportError: If zuko is not installed.
        ValueError: If there are more than ``max_latents`` elements, or an argument is wrong.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_transforms: int = 4,
        init: Init = None,
        *,
        transform: Literal["spline", "affine"] = "spline",
        hidden: Sequence[int] = (32, 32),
        init_scale: float = 1e-2,
        max_latents: int = 500,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        check_positive_int("num_transforms", num_transforms)
        check_positive("init_scale", init_scale, "standard deviation")
        check_positive_int("max_latents", max_latents)
        if transform not in ("spline", "affine"):
            raise ValueError(f"transform: expected 'spline' or 'affine', got {transform!r}.")
        if not isinstance(hidden, list | tuple) or any(type(width) is not int or width < 1 for width in hidden):
            raise ValueError(f"hidden: expected the widths of hidden layers, such as (32, 32), got {hidden!r}.")
        size = self.layout.size
        if size > max_latents:
            raise ValueError(
                f"max_latents: the flow would have {size:,} latent elements, more than {max_latents:,}; give it the "
                "last layer, as in Composite(model, [('net.2.*', NormalizingFlow), ('*', MeanField)]), or raise "
                "max_latents."
            )
        self.num_transforms, self.transform, self.hidden = num_transforms, transform, tuple(hidden)
        self.max_latents = max_latents
        loc = self.layout.join(initial_values(model, self.layout, init))
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(init_scale)))
        self.below = nn.Parameter(torch.zeros(size, size, dtype=loc.dtype, device=loc.device))
        maps = Maps(_coupling(size, num_transforms, transform, self.hidden))
        maps.start_as_identity()
        self.maps = maps.to(loc)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        sizes = {"num_transforms": self.num_transforms, "hidden": list(self.hidden), "max_latents": self.max_latents}
        return {"transform": self.transform, **sizes}

    def joint(self) -> _FlatFlow:
        """The distribution of the flat unconstrained vector (gradients attached)."""
        parameters: Any = self._parameters  # past Pyro's attribute hooks
        return _FlatFlow(self._modules["maps"], parameters["loc"], parameters["log_scale"], parameters["below"])

    def scale_parameters(self) -> list[nn.Parameter]:
        """The log scales, for a learning rate of their own."""
        return [self._parameters["log_scale"]]  # type: ignore[list-item]

    @property
    def facts(self) -> Facts:
        """One joint density of all sites."""
        names = frozenset(self.layout)
        return Facts(sites=names, density=names, independent=(names,), noise_size=self.layout.size)

    def marginal(self, name: str) -> dist.Distribution:
        """The site's distribution, which can be drawn from; it has a density if the guide has no other site."""
        return _Marginal(self, name)

    def starting_point(self) -> Draws:
        """The location, where other guides start."""
        return Draws(self.layout.constrain(self.layout.split(self._parameters["loc"].detach())))  # type: ignore[union-attr]

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One draw with gradients; its log density is kept for the divergence."""
        flat, log_q = self.joint().drawn((), noise)
        return Draws(self.layout.constrain(self.layout.split(flat)), record=log_q)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``, independent of each other."""
        return Draws(self.layout.constrain(self.layout.split(self.joint().drawn((num_samples,))[0])))

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Joint log density of draws ``{site: [K, *site shape]}`` on the sites' own supports, shape ``[K]``."""
        return joint_log_prob(self.layout, self.joint(), draws)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """``log q - log p`` of the draw.

        Raises:
            ValueError: If a site has no prior: coupled sites have no divergence without each other.
        """
        if missing := [name for name in self.layout if name not in priors]:
            raise ValueError(f"site {missing[0]!r}: the model did not sample it, but the guide couples it with others.")
        pieces = self.layout.unconstrain({name: draws[name] for name in self.layout})
        log_q = self.joint().log_prob(self.layout.join(pieces)) if draws.record is None else draws.record
        terms = {}
        for name, site in self.layout.items():
            value, term = draws[name], priors[name]
            log_jacobian = site.log_jacobian(pieces[name], value, value.dim() - site.event_dim)
            terms[name] = term.sum(-term.distribution.log_prob(value) - log_jacobian)
        return Divergence.of_sites(terms, log_q, False)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: an auxiliary site for the flat vector, from which each latent site follows."""
        self.announce_parameters()
        return sample_jointly(self.layout, self.joint())


class _FlatFlow(dist.TorchDistribution):
    """The flow over the flat vector ``[d]``."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, maps: Any, loc: Tensor, log_scale: Tensor, below: Tensor) -> None:
        self.maps, self.loc, self.log_scale = maps, loc, log_scale
        self.factor = below.tril(-1) + torch.eye(len(loc), dtype=loc.dtype, device=loc.device)
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    def drawn(self, shape: Sequence[int], noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Vectors ``[*shape, d]`` and their log densities."""
        z = self.loc.new_empty(*shape, len(self.loc)).normal_() if noise is None else noise
        x, ladj = self.maps(None, z, False)
        return self.loc + self.log_scale.exp() * (x @ self.factor.mT), self._density(z, ladj)

    def _density(self, z: Tensor, ladj: Tensor) -> Tensor:
        return (-0.5 * z.square() - 0.5 * math.log(2.0 * math.pi)).sum(-1) - ladj - self.log_scale.sum()

    def rsample(self, sample_shape: Any = (), noise: Tensor | None = None) -> Tensor:
        """Vectors ``[*sample shape, d]``."""
        return self.drawn(tuple(sample_shape), noise)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        scaled = ((value - self.loc) * (-self.log_scale).exp()).unsqueeze(-1)
        x = torch.linalg.solve_triangular(self.factor, scaled, upper=False, unitriangular=True).squeeze(-1)
        z = self.maps(None, x, True)
        return self._density(z, self.maps(None, z, False)[1])


class _Marginal(Generated):
    """One site of a flow."""

    def __init__(self, guide: NormalizingFlow, name: str) -> None:
        self.guide = guide
        super().__init__(guide.layout[name], draw=lambda count: guide.sample(count)[name])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, where there is no other site.

        Raises:
            NotImplementedError: If there is.
        """
        if len(self.guide.layout) > 1:
            raise NotImplementedError(
                f"site {self.site.name!r}: its density alone is not known, since NormalizingFlow couples it with other "
                "sites; log_prob of the guide has that of all of them."
            )
        lead = value.shape[: value.dim() - len(self.site.shape)]
        flat = value.reshape(-1, *self.site.shape)
        return self.guide.log_prob({self.site.name: flat}).reshape(lead)


def _coupling(size: int, num_transforms: int, transform: str, hidden: tuple[int, ...]) -> nn.Module:
    zuko = import_zuko("NormalizingFlow")
    options: dict[str, Any] = {"transforms": num_transforms, "hidden_features": hidden, "activation": nn.SiLU}
    if transform == "spline":
        univariate = partial(zuko.transforms.MonotonicRQSTransform, slope=MIN_SLOPE)
        options |= {"univariate": univariate, "shapes": [(8,), (8,), (7,)]}
    made: nn.Module = zuko.flows.NICE(size, **options).transform
    if size == 1:  # a single element is not coupled: its maps have no networks
        for parameter in made.parameters():
            nn.init.zeros_(parameter)
    return made
