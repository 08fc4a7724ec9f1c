r"""Monte Carlo dropout: weights with columns dropped at random.

.. math::  W = M\, \mathrm{diag}(z), \qquad z_j = b_j / (1 - p), \qquad b_j \sim \mathrm{Bernoulli}(1 - p),

one ``z`` for each draw: an input unit j of a layer (of a convolution a channel) is dropped with probability p, and the
others are scaled up, so that :math:`E[W] = M` and the mean network needs no rescaling. A draw is a *function*, the same
for all its inputs. In expectation this is dropout before the layer, with weight decay for the prior: for
:math:`N(m, s^2)` priors

.. math::  E_q[-\log p(W)] = -\log p(M) + \sum_{ij} \frac{p}{1 - p}\, \frac{M_{ij}^2}{2 s_{ij}^2},

which for m = 0 is :math:`\sum M_{ij}^2 / (2 (1 - p) s_{ij}^2)` and a constant; in terms of the unscaled
:math:`M' = M / (1 - p)` it is the :math:`\tfrac{1 - p}{2 s^2} \|M'\|^2` of the paper. The entropy of the masks does not
depend on M and is left out, so there is a penalty but no KL, and no density.

Gal & Ghahramani, *Dropout as a Bayesian Approximation* (2016a); for recurrent weights (2016b), where one draw means
one mask at all time steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.base import Guide, sample_site
from pyrobnn.guides.components.dropout_rates import Maskable, Rates, maskable_sites, resolve_rates
from pyrobnn.guides.components.dropped_columns import DroppedColumns
from pyrobnn.model.bayesianize import bayesian_modules
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.dropout import dropout_off
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import Init, initial_values
from pyrobnn.steps.autograd import AutogradStep
from pyrobnn.steps.base import Step

__all__ = ["MCDropout"]


@explained
class MCDropout(Guide):
    """Dropout as a posterior; a site without dropout is a point.

    Dropout modules of the network are switched off in training steps of :func:`pyrobnn.fit` and in predictions, where
    the guide's masks replace them. (Pyro's own ``SVI`` does not switch them off; put them in evaluation mode there.)

    Args:
        model: The Pyro model.
        p: Probability of dropping an input unit: one for all; ordered ``(pattern, probability)``, the first match
            deciding and no match meaning 0; or ``"network"``: each dropout module's p, for the layer after it (in a
            plain ``Sequential`` chain, and where the module does drop whole input units of that layer). The dropout of
            recurrent, attention and Transformer layers is no such mask, and refused.
        init: Where M starts, as for :class:`~pyrobnn.guides.MeanField`.
        where: Glob patterns of sites (or of parameters in the network) that one ``p`` is for. By default the weights of
            all linear and convolutional layers, the first one's included (Gal & Ghahramani put dropout before every
            weight layer; inputs are often given a smaller p), except where the only unit, as the channel of gray
            images, would be dropped. Recurrent weights and embeddings (columns: word types) are masked if named.
        per_example: In training steps, draw masks for each example instead of each draw, as ordinary dropout does: the
            same objective in expectation, with less noise where examples agree. Only for linear and (not transposed)
            convolutional layers.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Attributes:
        rates: Probability of dropping by site; other sites are points.

    Raises:
        TypeError: If ``p`` is of another kind.
        ValueError: If a probability or pattern does not fit, nothing is masked, or the network's own dropout is not
            a mask of columns.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        p: Rates = 0.1,
        init: Init = None,
        *,
        where: str | Sequence[str] | None = None,
        per_example: bool = False,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        maskable = maskable_sites(model, self.layout)
        self.rates = resolve_rates(maskable, p, where)
        self.per_example = per_example
        self._parameter_of = {name: maskable[name].parameter for name in self.rates}
        if per_example:
            for name in self.rates:
                _check_per_example(maskable[name])
        self.loc = nn.Parameter(self.layout.join(initial_values(model, self.layout, init)))
        columns, keep = _layout(self, maskable)
        # Not persistent: both are determined by the configuration.
        self.register_buffer("columns", columns.to(self.flat_loc.device), persistent=False)
        self.register_buffer("keep", keep.to(self.flat_loc.detach()), persistent=False)

    columns: Tensor
    keep: Tensor

    @property
    def flat_loc(self) -> nn.Parameter:
        """M of all sites, read past Pyro's attribute hooks."""
        return self._parameters["loc"]  # type: ignore[return-value]

    def config(self) -> dict[str, Any]:
        """Constructor arguments; the rates by site."""
        return {"p": [[name, rate] for name, rate in self.rates.items()], "per_example": self.per_example}

    # ----------------------------------------------------------------------------------------------- draws

    def _masks(self, num_samples: int) -> Tensor:
        """Factors of the flat vector ``[num_samples, num_latents]``: 0 or 1 / (1 - p), one for each column."""
        keep = self.keep.expand(num_samples, -1)
        factors = torch.bernoulli(keep) / keep
        return factors[:, self.columns]

    @property
    def facts(self) -> Facts:
        """Mixtures of point masses: nothing has a density."""
        names = frozenset(self.layout)
        return Facts(sites=names, independent=tuple(frozenset({name}) for name in self.layout))

    def starting_point(self) -> Draws:
        """The weights before columns are dropped, where other guides start."""
        return Draws(self.layout.constrain(self.layout.split(self.flat_loc.detach())))

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One draw, ``M diag(z)``."""
        return Draws(self.layout.constrain(self.layout.split(self.flat_loc * self._masks(1)[0])))

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``: weights with columns dropped, one mask each."""
        return Draws(self.layout.constrain(self.layout.split(self.flat_loc * self._masks(num_samples))))

    def marginal(self, name: str) -> dist.Distribution:
        """The site's distribution, which has moments and draws but no density, or a point."""
        site = self.layout[name]
        value = self.flat_loc[site.window].view(site.unconstrained_shape)
        if name in self.rates:
            return DroppedColumns(value, self.columns[site.window].view(site.shape), self.keep)
        return dist.Delta(site.constrain(value), event_dim=site.event_dim)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: each site a point mass at its value in one draw; masks are not sites."""
        self.announce_parameters()
        values = self.rsample()
        return {
            name: sample_site(site, dist.Delta(values[name], event_dim=site.event_dim))
            for name, site in self.layout.items()
        }

    # ----------------------------------------------------------------------------------------- training

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        r""":math:`E_q[-\log p]` by site: closed for Normal priors and points, else ``-log p(v)`` of the draw."""
        terms, exact = {}, True
        for name, term in priors.items():
            base = base_distribution(term.distribution)
            if name in self.rates and isinstance(base, dist.Normal):
                found: Any = self.marginal(name)
                score = 0.5 * found.variance / base.scale.square() - base.log_prob(found.mean)
                terms[name] = term.sum(score.reshape(*term.distribution.batch_shape, -1).sum(-1))
            else:
                terms[name] = term.sum(-term.distribution.log_prob(draws[name]))
                exact = exact and name not in self.rates
        return Divergence.of_sites(terms, 0.0, exact, "-log prior")

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """Draws under which the network's own dropout is switched off; with ``per_example`` masks are on layers'
        inputs.
        """
        return AutogradStep(self.layout, self._training_draw, self.divergence)

    def _training_draw(self, noise: Tensor | None = None) -> Draws:
        if not self.per_example:
            draw = self.rsample()
            draw.contexts = (_dropout_off,)
            return draw
        values = self.layout.constrain(self.layout.split(self.flat_loc))
        return Draws(values, contexts=(_dropout_off, self._input_masks))

    @contextlib.contextmanager
    def _input_masks(self, model: nn.Module) -> Iterator[None]:
        """Masks the inputs of the layers, ``M (z ∘ x) = (M diag(z)) x``, example by example.

        Raises:
            ValueError: If a masked layer was not called as a module.
        """
        masks: dict[str, Tensor] = {}
        maskable = maskable_sites(model, self.layout)
        handles = [
            maskable[name].module.register_forward_pre_hook(_mask_inputs(masks, name, rate))
            for name, rate in self.rates.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if missed := [name for name in self.rates if name not in masks]:
            raise ValueError(
                f"per_example: the layer of {missed[0]!r} was not called as a module, so its inputs could not be "
                "masked; leave per_example False."
            )


# ------------------------------------------------------------------------------------------------------- helpers


def _layout(guide: MCDropout, maskable: Mapping[str, Maskable]) -> tuple[Tensor, Tensor]:
    """The column of each element of the flat vector, and each column's probability of being kept.

    Elements that are never dropped share a last column that is always kept.
    """
    total = sum(maskable[name].num_columns for name in guide.rates)
    columns, keep, start = torch.full((guide.layout.size,), total), torch.ones(total + 1, dtype=torch.float64), 0
    for name, rate in guide.rates.items():
        weight, site = maskable[name], guide.layout[name]
        columns[site.window] = start + weight.columns.flatten()
        keep[start : start + weight.num_columns] = 1.0 - rate
        start += weight.num_columns
    return columns, keep


def _check_per_example(weight: Maskable) -> None:
    if not isinstance(weight.module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise ValueError(
            f"per_example: the inputs of {weight.parameter!r} ({type(weight.module).__name__}) cannot be masked by "
            "example; leave per_example False, or name other weights."
        )


def _mask_inputs(masks: dict[str, Tensor], name: str, rate: float) -> Callable[..., Any]:
    def mask(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        units = x.shape[-1] if isinstance(module, nn.Linear) else x.shape[1]
        if name not in masks or len(masks[name]) != len(x):
            masks[name] = torch.bernoulli(x.new_full((len(x), units), 1.0 - rate)) / (1.0 - rate)
        # One mask for an example, at all its positions.
        ones = [1] * (x.dim() - 2)
        shape = (len(x), *ones, units) if isinstance(module, nn.Linear) else (len(x), units, *ones)
        return (x * masks[name].view(shape), *inputs[1:])

    return mask


@contextlib.contextmanager
def _dropout_off(model: nn.Module) -> Iterator[None]:
    """Switches the dropout of the converted networks off for the block."""
    with contextlib.ExitStack() as stack:
        for network in bayesian_modules(model):
            stack.enter_context(dropout_off(network.network))
        yield
