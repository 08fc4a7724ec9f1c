"""How a draw enters a layer: the choice of an estimator, for all sites, by site, or within a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from pyrobnn.estimators.weight import GaussianWeight, Layer

__all__ = ["Estimator", "EstimatorSpec", "SharedDraw", "active_estimators", "by_site", "resolve", "use"]


class Estimator:
    """Base class of estimators. Layer-wise estimators implement :meth:`layer`; others change the whole training step.

    Attributes:
        name: Name for :func:`use` and ``ELBO(estimator=...)``.
        handles: Layer classes it applies to; others see one draw shared by the batch.
        layerwise: Whether it may be chosen for single sites.
        groups: Number of parts a batch is split into, one draw for each.
        path_derivative: Whether the score of q is left out of the gradient.
        shares_noise: Whether its layers use one deviation for the whole batch, so that antithetic noise of several
            steps can be used (``MeanField(antithetic=True)``).
    """

    name: ClassVar[str] = ""
    handles: ClassVar[tuple[type[nn.Module], ...]] = ()
    layerwise: ClassVar[bool] = True
    path_derivative: ClassVar[bool] = False
    shares_noise: ClassVar[bool] = False
    groups: int = 1

    def layer(self, layer: Layer, x: Tensor, weight: GaussianWeight, bias: Tensor | None) -> Any:
        """The output of a linear or convolution layer, or ``NotImplemented`` for the shared draw.

        Args:
            layer: The call.
            x: Inputs ``[B, …, in]`` of a linear layer or ``[B, in, …]`` of a convolution.
            weight: The weight's distribution.
            bias: The bias: another distribution, a tensor, or None.
        """
        return NotImplemented

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class SharedDraw(Estimator):
    """One draw of every weight for the whole batch: the default, and the cheapest."""

    name = "shared"


EstimatorSpec: TypeAlias = Estimator | str | Sequence[tuple[str, "Estimator | str"]] | None
"""An estimator, its name, or ordered ``(glob pattern of site names, estimator)`` rules."""

_active: ContextVar[list[tuple[str, Estimator]] | None] = ContextVar("pyrobnn_estimators", default=None)


def resolve(spec: EstimatorSpec) -> list[tuple[str, Estimator]]:
    """Rules ``[(pattern, estimator)]``; empty for the shared draw.

    Raises:
        TypeError: If ``spec`` is none of the above.
        ValueError: If a name is unknown, or an estimator that changes the whole step is given for single sites.
    """
    if spec is None:
        return []
    if isinstance(spec, str):
        return [("*", _named(spec))]
    if isinstance(spec, Estimator):
        return [("*", spec)]
    if not isinstance(spec, Sequence) or not all(isinstance(rule, tuple) and len(rule) == 2 for rule in spec):
        raise TypeError(f"estimator: expected an estimator, its name, or a list of (pattern, estimator), got {spec!r}.")
    rules = [(rule[0], _named(rule[1])) for rule in spec]
    for pattern, estimator in rules:
        if not estimator.layerwise and (len(rules) > 1 or pattern != "*"):
            raise ValueError(
                f"estimator: {estimator.name!r} changes the whole step and cannot be chosen for {pattern!r} alone; "
                "pass it by itself."
            )
    return rules


def _named(estimator: Estimator | str) -> Estimator:
    if isinstance(estimator, Estimator):
        return estimator
    known = {kind.name: kind for kind in _subclasses(Estimator) if kind.name}
    if estimator not in known:
        raise ValueError(f"estimator: there is none called {estimator!r}; there are {', '.join(sorted(known))}.")
    return known[estimator]()


def _subclasses(kind: type[Estimator]) -> Iterator[type[Estimator]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def by_site(rules: list[tuple[str, Estimator]], sites: Sequence[str]) -> dict[str, Estimator]:
    """The estimator of each site: that of the first pattern that matches it, none for the shared draw.

    Raises:
        ValueError: If a pattern matches no site.
    """
    chosen: dict[str, Estimator] = {}
    matched = set()
    for site in sites:
        for pattern, estimator in rules:
            if fnmatchcase(site, pattern):
                matched.add(pattern)
                chosen.setdefault(site, estimator)
    for pattern, _ in rules:
        if pattern not in matched:
            raise ValueError(
                f"estimator: the pattern {pattern!r} matches no site; the guide has {', '.join(list(sites)[:8])}."
            )
    return chosen


@contextmanager
def use(spec: EstimatorSpec) -> Iterator[None]:
    """Sets the estimator of objectives without ``estimator=``, within the block.

    Args:
        spec: An estimator, its name, or ordered ``(pattern of site names, estimator)`` rules.

    Example::

        with pb.estimators.use("flipout"):
            pb.fit(model, guide, loader)
    """
    token = _active.set(resolve(spec))
    try:
        yield
    finally:
        _active.reset(token)


def active_estimators() -> list[tuple[str, Estimator]]:
    """The rules of the innermost :func:`use` block; empty outside."""
    return _active.get() or []
