"""A model's log joint density as a function of the flat vector of some of its sites, batch by batch.

The sites' values are those of their unconstrained vector; others stay where they are. The scale N / B that a model
gives a batch is taken off again, so that batches add up to the data set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyrobnn.core.batches import Batch
from pyrobnn.core.pyro_compat import strictly_vectorized
from pyrobnn.model.substitution import SubstituteMessenger, unscaled_score

if TYPE_CHECKING:
    from pyrobnn.model.layout import Site

__all__ = ["LogJoint", "Scores", "pulled_back", "second_derivatives"]


class Scores(NamedTuple):
    """Log densities of one run.

    Attributes:
        likelihood: Of the batch's observations, added up.
        prior: Of all latent sites.
        prior_of_sites: Of the sites that are differentiated.
        full_size: Size of the plate of the data, if the observations are in one that takes subsamples.
    """

    likelihood: Tensor
    prior: Tensor
    prior_of_sites: float
    full_size: int | None


class LogJoint:
    """The log densities of batches at flat vectors ``[n]``.

    Args:
        model: The model, in evaluation mode, called as ``model(*args, **kwargs)`` of a batch.
        values: Values of all its sites.
        sites: The sites that are differentiated, in the order of the vector.

    Attributes:
        point: The vector at the given values.
    """

    def __init__(self, model: Any, values: Mapping[str, Tensor], sites: Sequence[Site]) -> None:
        self.model, self.values, self.sites = model, values, list(sites)
        parts = [site.unconstrain(values[site.name].detach()).reshape(-1) for site in self.sites]
        self.point = torch.cat(parts)

    def moved(self, flat: Tensor) -> dict[str, Tensor]:
        """The values of all sites with those of the vector."""
        parts = flat.split([site.numel for site in self.sites])
        moved = dict(self.values)
        for site, part in zip(self.sites, parts, strict=True):
            moved[site.name] = site.constrain(part.view(site.unconstrained_shape))
        return moved

    def scores(self, flat: Tensor, batch: Batch) -> Scores:
        """The log densities at a vector ``[n]``, with gradients.

        Raises:
            ValueError: If a site has no value.
        """
        with SubstituteMessenger(self.moved(flat)) as messages:
            self.model(*batch.args, **batch.kwargs)
        _check_values(messages, self.values)
        observed = sum((_of_batch(message) for message in messages.observed), flat.new_zeros(()))
        latent = {message["name"]: unscaled_score(message).sum() for message in messages.latent}
        own = sum(float(latent[site.name].detach()) for site in self.sites)
        return Scores(observed, torch.as_tensor(sum(latent.values())), own, _full_size(messages))

    def value_and_gradient(self, flat: Tensor, batches: Iterable[Batch]) -> tuple[float, Tensor]:
        """The log joint density of a whole data set, and its gradient ``[n]`` in double precision."""
        value, gradient = 0.0, torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
        for index, batch in enumerate(batches):
            with torch.enable_grad():
                leaf = flat.detach().clone().requires_grad_()
                scores = self.scores(leaf, batch)
                total = scores.likelihood + scores.prior if index == 0 else scores.likelihood  # the prior counts once
                gradient += torch.autograd.grad(total, leaf, allow_unused=True, materialize_grads=True)[0].double()
            value += float(total.detach())
        return value, gradient


def second_derivatives(value: Tensor, leaf: Tensor, vectors: Tensor | None = None) -> Tensor:
    """The matrix ``[n, n]`` of a function's second derivatives; zeros where it does not depend on the leaf.

    Args:
        value: The function's value, with its graph.
        leaf: What it is differentiated by, ``[n]``.
        vectors: Vectors ``[R, n]``, of which only the products with the matrix are wanted.
    """
    count = len(leaf) if vectors is None else len(vectors)
    if not value.requires_grad:
        return leaf.new_zeros(count, len(leaf))
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True, allow_unused=True)
    if slope is None or not slope.requires_grad:
        return leaf.new_zeros(count, len(leaf))
    if vectors is not None:
        return pulled_back(slope, leaf, vectors)
    found = [torch.autograd.grad(entry, leaf, retain_graph=True, allow_unused=True)[0] for entry in slope]
    return torch.stack([leaf.new_zeros(len(leaf)) if row is None else row for row in found])


def pulled_back(outputs: Tensor, leaf: Tensor, columns: Tensor) -> Tensor:
    """``Jᵀ c [R, *leaf shape]`` of columns ``[R, *output shape]``, at once where torch can vmap the graph.

    Args:
        outputs: A tensor with its graph, which is kept.
        leaf: What it is differentiated by.
        columns: The columns c.
    """
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    if len(columns) > 1:
        with contextlib.suppress(RuntimeError), strictly_vectorized(True):
            return torch.autograd.grad(outputs, leaf, columns, is_grads_batched=True, **options)[0]
    return torch.stack([torch.autograd.grad(outputs, leaf, column, **options)[0] for column in columns])


def _of_batch(message: Any) -> Tensor:
    """The log density of a batch's observation, without the factor that scales it to the data set."""
    total = (unscaled_score(message) * message["scale"]).sum()  # a scale may be a weight for each row
    for frame in message["cond_indep_stack"]:
        if frame.vectorized and frame.full_size is not None and frame.full_size != frame.size:
            total = total * (frame.size / frame.full_size)
    return total


def _full_size(messages: SubstituteMessenger) -> int | None:
    frames = [f for message in messages.observed for f in message["cond_indep_stack"] if f.vectorized]
    sizes = [f.full_size for f in frames if f.full_size is not None and f.full_size != f.size]
    return max(sizes, default=None)


def _check_values(messages: SubstituteMessenger, values: Mapping[str, Tensor]) -> None:
    missing = [message["name"] for message in messages.latent if message["name"] not in values]
    if missing:
        raise ValueError(
            f"given: the site {missing[0]!r} belongs to another guide, and its value is needed; pass given={{site: "
            "value}, such as {name: draw[0] for name, draw in other.sample(1).items()}."
        )
