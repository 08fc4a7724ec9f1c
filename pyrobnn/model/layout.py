"""The latent sites of a model and their positions in one flat vector.

A :class:`Layout` holds names, shapes, transforms and the order of the flat unconstrained vector, which is the model's
order; it holds no distribution of its own. Guides, samplers, checkpoints and curvature share it.
"""

# Pyro declares the attributes of torch distributions on subclasses only.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions.transforms import ExpTransform, biject_to
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.distributions.fixed_row import InsertRow
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.model.bayesianize import bayesian_modules, frozen_buffers
from pyrobnn.model.declarations import latent_sampler
from pyrobnn.model.priors.base import elementwise_support, is_real

__all__ = ["Layout", "Site", "is_trained"]


@dataclass(frozen=True)
class Site:
    """One latent site of the model.

    Attributes:
        name: Pyro's name of the site.
        shape: Shape of its value (batch and event dimensions).
        event_dim: Number of event dimensions of its prior.
        prior: Its prior when the layout was made.
        is_static: Whether each run of the model uses one prior object, none of whose tensors is trained.
        plates: ``(name, size, dim)`` of the plates the site lies in.
        unconstrained_shape: Shape in unconstrained space.
        offset: Where the site begins in the flat vector of all sites.
    """

    name: str
    shape: torch.Size
    event_dim: int
    prior: dist.Distribution
    is_static: bool
    plates: tuple[tuple[str, int, int], ...]
    unconstrained_shape: torch.Size
    offset: int = 0

    @cached_property
    def numel(self) -> int:
        """Number of unconstrained elements."""
        return self.unconstrained_shape.numel()

    @property
    def window(self) -> slice:
        """The site's elements of the flat vector."""
        return slice(self.offset, self.offset + self.numel)

    @cached_property
    def is_real(self) -> bool:
        """Whether the site's value is its piece of the flat vector, untransformed."""
        return is_real(self.prior)

    @cached_property
    def is_linear(self) -> bool:
        """Whether the value consists of its piece of the flat vector and constants, so that a Gaussian stays one."""
        return self.is_real or isinstance(self.transform, InsertRow)

    @cached_property
    def transform(self) -> Any:
        """From unconstrained space to the site's support, elementwise where the support is."""
        return _transform_to_support(self.prior)

    def constrain(self, unconstrained: Tensor) -> Tensor:
        """The site's value from its unconstrained value."""
        return unconstrained if self.is_real else self.transform(unconstrained)

    def unconstrain(self, value: Tensor) -> Tensor:
        """The inverse of :meth:`constrain`."""
        return value if self.is_real else self.transform.inv(value)

    def log_jacobian(self, unconstrained: Tensor, value: Tensor, num_batch_dims: int) -> Tensor:
        """``log |det ∂t / ∂u|`` of the transform, summed over all but the leading dimensions."""
        if self.is_real:
            return value.new_zeros(value.shape[:num_batch_dims])
        by_element = self.transform.log_abs_det_jacobian(unconstrained, value)
        return by_element.reshape(*value.shape[:num_batch_dims], -1).sum(-1)


class Layout(Mapping[str, Site]):
    """Sites by name, in the model's order, which is also that of the flat vector.

    Args:
        sites: The sites; their offsets are set here.

    Attributes:
        size: Length of the flat vector.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites: dict[str, Site] = {}
        self.size = 0
        for site in sites:
            self._sites[site.name] = replace(site, offset=self.size)
            self.size += site.numel
        self._sizes = [site.numel for site in self._sites.values()]
        self._is_real = all(site.is_real for site in self._sites.values())

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        *,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> Layout:
        """The layout of a model's latent sites.

        Args:
            model: The Pyro model. The sites of models of this library are found without data; any other model needs
                ``example``.
            example: Arguments for one run of the model.
            sites: Names of the sites to keep; all of them if None.

        Raises:
            TypeError: If the model is no Pyro model, or needs ``example`` and has none.
            ValueError: If the model has no latent sites, or one this library cannot handle, or lacks one of ``sites``.
        """
        found = cls(_find_sites(model, example))
        return found if sites is None else found.select(sites)

    def select(self, names: Collection[str]) -> Layout:
        """The layout of some of the sites, with a flat vector of their own.

        Raises:
            ValueError: If there is no such site, or none is named.
        """
        if unknown := sorted(set(names) - set(self)):
            known = ", ".join(sorted(self)[:8])
            raise ValueError(f"sites: there is no latent site {unknown[0]!r}; the model has {known}.")
        if not names:
            raise ValueError("sites: it names no site; leave it out for a guide of all sites.")
        return Layout(site for name, site in self.items() if name in set(names))

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views ``{site: [..., *unconstrained shape]}`` of flat vectors ``[..., size]``."""
        parts, lead = flat.split(self._sizes, -1), flat.shape[:-1]
        return {
            site.name: part.reshape(lead + site.unconstrained_shape)
            for site, part in zip(self._sites.values(), parts, strict=True)
        }

    def join(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """The flat vector ``[..., size]`` of unconstrained values; the inverse of :meth:`split`."""
        parts = []
        for site in self._sites.values():
            piece = pieces[site.name]
            parts.append(piece.reshape(*piece.shape[: piece.dim() - len(site.unconstrained_shape)], -1))
        return torch.cat(parts, -1)

    def constrain(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sites' values from their unconstrained values; leading dimensions are allowed."""
        if self._is_real:
            return dict(pieces)
        return {name: self._sites[name].constrain(value) for name, value in pieces.items()}

    def unconstrain(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`constrain`."""
        return {name: self._sites[name].unconstrain(value) for name, value in values.items()}

    def log_jacobian(self, pieces: Mapping[str, Tensor], values: Mapping[str, Tensor], lead: int = 0) -> Tensor:
        """``log |det|`` of :meth:`constrain`, summed over sites and all but the first ``lead`` dimensions."""
        terms = [self._sites[name].log_jacobian(pieces[name], value, lead) for name, value in values.items()]
        return torch.stack(terms).sum(0)

    def __repr__(self) -> str:
        return f"Layout(num_sites={len(self)}, size={self.size})"


# ------------------------------------------------------------------------------------------------- finding sites


def is_trained(prior: dist.Distribution) -> bool:
    """Whether a tensor of the distribution requires gradients."""
    return any(torch.is_tensor(value) and value.requires_grad for value in vars(base_distribution(prior)).values())


def _find_sites(model: Callable[..., Any], example: tuple[Any, ...] | None) -> Iterator[Site]:
    """The model's latent sites, from two traces that leave buffers and the random state as they were."""
    if not callable(model):
        raise TypeError(f"model: expected a Pyro model (a callable), got {type(model).__name__}.")
    sampler = latent_sampler(model)
    if sampler is None and example is None:
        raise TypeError(
            f"example: the latent sites of {type(model).__name__} are not known without data; pass a batch, such as "
            "example=(x, y), so that one run of the model can show them."
        )
    run = model if example is not None else sampler
    arguments = example if example is not None else ()
    module = model if isinstance(model, nn.Module) else nn.Module()
    with torch.no_grad(), random_state.preserved(torch.device("cpu")), frozen_buffers(module):
        first, second = (poutine.trace(run).get_trace(*arguments).nodes for _ in range(2))
    latent = [
        name
        for name, node in first.items()
        if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
    ]
    values: dict[str, Any] = {name: first[name]["value"] for name in latent}
    _check_dtypes(module, {name: value.dtype for name, value in values.items()})
    for name in latent:
        yield _describe_site(name, first[name], second.get(name))
    if not latent:
        raise ValueError(
            "model: it has no latent sites, so there is no posterior; give at least one parameter a prior."
        )


def _check_dtypes(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Refuses weights of less precision than another site: the flat vector has one dtype, which they would get."""
    if len(set(dtypes.values())) < 2:
        return
    widest = reduce(torch.promote_types, dtypes.values())
    for network in bayesian_modules(module):
        for name in (full_name(network, name) for name in network.parameter_names):
            if dtypes.get(name, widest) != widest:
                other = next((other for other, dtype in dtypes.items() if dtype == widest), "another site")
                raise ValueError(
                    f"site {name!r}: it is {dtypes[name]}, but {other!r} is {widest}; all random weights must have one "
                    "dtype: convert the network by net.to(dtype), and its inputs where it changes their dtype."
                )


def _describe_site(name: str, node: Any, again: Any) -> Site:
    prior, value = node["fn"], node["value"]
    if again is None:
        raise ValueError(
            f"site {name!r}: it appeared in one run of the model but not in the next; sites must be fixed."
        )
    if prior.support.is_discrete:
        raise ValueError(
            f"site {name!r}: its prior {type(prior).__name__} is discrete, but guides of this library are continuous; "
            "marginalize it or use a relaxed distribution."
        )
    frames = node["cond_indep_stack"]
    for frame in frames:
        if not frame.vectorized or (frame.full_size or frame.size) != frame.size:
            raise ValueError(
                f"site {name!r}: it lies in the subsampled or sequential plate {frame.name!r}; a latent site per datum "
                "needs a guide of its own."
            )
    unconstrained = value if is_real(prior) else _transform_to_support(prior).inv(value)
    return Site(
        name=name,
        shape=value.shape,
        event_dim=len(prior.event_shape),
        prior=prior,
        is_static=again["fn"] is prior and not is_trained(prior),
        plates=tuple((frame.name, frame.size, frame.dim) for frame in frames),
        unconstrained_shape=unconstrained.shape,
    )


def _transform_to_support(prior: dist.Distribution) -> Any:
    """From unconstrained space to the prior's support.

    For the positive reals it is the plain exponential, which a log-normal prior's KL is registered for; torch's own
    choice there is a composition that equals it only in value.
    """
    support = elementwise_support(prior)
    bounds = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if bounds[1] is None and isinstance(bounds[0], float | int) and bounds[0] == 0:
        return ExpTransform()
    return biject_to(support)
