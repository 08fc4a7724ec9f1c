r"""The base class of all posteriors: a Pyro guide over the model's latent sites, with parameters from the start.

A guide samples each latent site of the model, so it works with Pyro's own objectives. It also makes draws with and
without gradients, computes densities and divergences, makes its training step (:meth:`Guide.step`) and declares its
properties (:attr:`Guide.facts`). Each family is one module and implements the abstract members.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn.core.arguments import counted
from pyrobnn.core.pyro_compat import AbstractModuleMeta, announce_parameter, full_name, is_handler_active
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.estimators.base import Estimator
from pyrobnn.model.agreement import check_layout
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import Init, StartingPoint
from pyrobnn.model.layout import Layout, Site
from pyrobnn.model.linearization import Linearization
from pyrobnn.steps.autograd import AutogradStep
from pyrobnn.steps.base import Step

__all__ = ["Guide", "Init", "check_guide"]


class Guide(PyroModule, StartingPoint, metaclass=AbstractModuleMeta):  # type: ignore[metaclass]
    """Base of all posterior families.

    Args:
        model: The Pyro model. The sites of models of this library are found without data; any other model needs
            ``example``. A layout, or a guide with the same sites, may be given instead.
        example: Arguments for one run of the model, to find its sites.
        sites: Names of the sites of this guide, if other guides have the rest
            (:class:`~pyrobnn.guides.Composite`); all of them if None.

    Attributes:
        layout: The guide's sites and their positions in the flat vector.
        sizes: Entries of :meth:`config` that count what the state holds (members, draws, a rank): the product of these
            ints is no more than the numbers in it, nor is any entry of these lists.

    Raises:
        TypeError: If the model is no Pyro model, or needs ``example`` and has none.
        ValueError: If the model has no latent sites, or one this library cannot handle, or lacks one of ``sites``.
    """

    layout: Layout
    sizes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: Callable[..., Any] | Layout,
        *,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        given = model.layout if isinstance(model, Guide) else model
        if isinstance(given, Layout):
            self.layout = given if sites is None else given.select(sites)
        else:
            self.layout = Layout.of(given, example=example, sites=sites)

    def __init_subclass__(cls, **options: Any) -> None:
        """Every family refuses a ``num_samples`` that is no number of draws."""
        super().__init_subclass__(**options)
        if "sample" in vars(cls):
            cls.sample = counted(cls.sample)  # type: ignore[method-assign, assignment]

    # ------------------------------------------------------------------------------------ abstract members

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """Properties of the family, and of this guide in its present state."""

    @abstractmethod
    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One draw of all sites with gradients to the guide's parameters.

        Args:
            noise: Standard normals to make it from, ``[facts.noise_size]``; fresh ones if None.
        """

    @abstractmethod
    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}`` without gradients."""

    @abstractmethod
    def marginal(self, name: str) -> dist.Distribution:
        """The guide's distribution of one site (gradients attached)."""

    # ------------------------------------------- members to override (defaults are for independent sites)

    def sample_blocks(self, sizes: Iterable[int], *, reuse_memory: bool = False) -> Iterator[Draws]:
        """Draws in blocks of the given sizes; families whose draws are not independent balance them across blocks.

        With ``reuse_memory`` a block may be overwritten as soon as the next one is requested.
        """
        return (self.sample(size) for size in sizes)

    def elementwise_marginal(self, name: str) -> dist.Distribution:
        """The distribution of a site's elements as if they were independent, for statistics element by element."""
        return self.marginal(name)

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Log density of draws ``{site: [K, *site shape]}``, shape ``[K]``, on the sites' own supports.

        Args:
            draws: Values of all sites; or of some that are independent of the others.

        Raises:
            NotImplementedError: If a site is not among ``facts.density``.
        """
        if missing := [name for name in draws if name not in self.facts.density]:
            raise NotImplementedError(
                f"{type(self).__name__} has no density of the site {missing[0]!r}; use MeanField or LowRankNormal for "
                "one."
            )
        total: Tensor | float = 0.0
        for name, value in draws.items():
            log_density = self.marginal(name).log_prob(value)
            total = total + log_density.reshape(log_density.shape[0], -1).sum(-1)
        return torch.as_tensor(total)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The divergence of the posterior that :meth:`sample` draws from.

        Args:
            draws: A draw, at which terms without a closed form are estimated.
            priors: Priors by site, as a run of the model under this draw applied them; other sites are left out.
        """
        return Divergence.beside(0.0, (), self.marginal, priors, draws)

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """The training step of the guide.

        Args:
            model: The model that it is trained with.
            estimators: Estimators by site, for sites whose draws are made in the layers; they must be among
                ``facts.gaussian``.
            sequential: Whether each draw's loss is differentiated before the next draw is made, so that memory may be
                reused. If not, all draws may be in one graph, which can be differentiated twice.
            vectorize: Whether members of an ensemble may run in one vectorized pass.

        Raises:
            TypeError: If the guide is not trained by an objective.
        """
        return AutogradStep(self.layout, self.rsample, self.divergence, estimators, self.gaussian)

    def linearization(self) -> Linearization | None:
        """The Gaussian around a mode under which the linearized network predicts; None if the family has none."""
        return None

    def config(self) -> dict[str, Any]:
        """JSON-able constructor arguments other than ``model``; a checkpoint rebuilds the guide from them.

        Starting values are left out: the parameters come from the state dict.
        """
        return {}

    def scale_parameters(self) -> list[nn.Parameter]:
        """Parameters that are (log) scales, for a learning rate of their own."""
        return []

    def write_buffers(self, component: Tensor | None, buffers: Mapping[str, Tensor]) -> None:
        """Sets the buffers of one component of a mixture, by their name in the model.

        Raises:
            NotImplementedError: If the components of this family have no buffers.
        """
        raise NotImplementedError(f"{type(self).__name__} has no buffers of its own; the model's are used.")

    def atoms(self, members: Tensor) -> Draws:
        """The components ``members [K]`` of a finite mixture of points, as draws.

        Raises:
            NotImplementedError: If the guide is not such a mixture.
        """
        raise NotImplementedError(f"{type(self).__name__} is no mixture of finitely many points.")

    def chain_draws(self, chain: int, places: Tensor | None = None) -> Draws:
        """Draws of one Markov chain at positions ``places [k]`` (None: all), if ``facts.chain_shape`` is not None.

        Raises:
            NotImplementedError: If the draws are not from chains.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no Markov chains.")

    def sample_stats(self) -> dict[str, Tensor]:
        """Statistics that the sampler recorded for each draw of its chains, ``{name: [C, S]}``; else empty."""
        return {}

    @classmethod
    def family(cls, config: Mapping[str, Any], nested: Callable[[Mapping[str, Any]], Any]) -> Callable[..., Guide]:
        """A function that builds the guide that :meth:`config` describes from a model.

        Args:
            config: What :meth:`config` returned.
            nested: The function that does the same for the description of a guide inside ``config``.
        """
        return partial(cls, **config)

    def parts_of(self, kind: type[Guide]) -> list[Any]:
        """The guides of a kind that this one consists of: itself, or parts of a composite."""
        return [self] if isinstance(self, kind) else []

    def part(self, name: str) -> Guide:
        """The guide that a site belongs to.

        Raises:
            ValueError: If there is no such site.
        """
        if name not in self.layout:
            raise ValueError(
                f"site: there is no latent site {name!r}; the model has {', '.join(list(self.layout)[:8])}."
            )
        return self

    # ------------------------------------------------------------------------------------ derived members

    def gaussian(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a site among ``facts.gaussian``, with gradients."""
        base = base_distribution(self.marginal(name))
        return base.loc, base.scale

    def extra_repr(self) -> str:
        """Sizes."""
        return f"num_sites={len(self.layout)}, num_latents={self.layout.size}"

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: one sample statement per latent site; the arguments are ignored."""
        self.announce_parameters()
        return {name: sample_site(site, self.marginal(name)) for name, site in self.layout.items()}

    def announce_parameters(self) -> None:
        """Sends a param message for each trainable parameter to active Pyro handlers, as Pyro's ``SVI`` expects."""
        if is_handler_active():
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    announce_parameter(full_name(self, name), parameter)


def check_guide(
    model: Any, guide: object, *, argument: str = "guide", partial: bool = False, also: str = "", advice: str = ""
) -> None:
    """Refuses what is no guide of this library, or one that was built for another model.

    Args:
        model: The model.
        guide: What was given.
        argument: The argument, with which messages begin.
        partial: Whether other guides may have sites that this one lacks.
        also: What else may be given, for the message.
        advice: What to do with another guide, for the message.

    Raises:
        TypeError: If it is no guide, or of another precision than the network.
        ValueError: If its sites are not those of the model, by name and shape.
    """
    if not isinstance(guide, Guide):
        raise TypeError(f"{argument}: expected one of pyrobnn.guides{also}, got {_named(guide)}{advice}.")
    tensors = (*guide.parameters(), *guide.buffers())
    check_layout(model, guide.layout, argument=argument, partial=partial, tensors=tensors)


def _named(value: object) -> str:
    return f"the class {value.__name__}, not an instance of it" if isinstance(value, type) else type(value).__name__


def sample_site(site: Site, distribution: dist.Distribution) -> Tensor:
    """Pyro's sample statement of a site, in its plates."""
    with contextlib.ExitStack() as stack:
        for name, size, dim in site.plates:
            stack.enter_context(pyro.plate(name, size, dim=dim))
        return pyro.sample(site.name, distribution)  # type: ignore[arg-type]
