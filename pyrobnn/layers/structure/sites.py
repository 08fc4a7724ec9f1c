r"""Where structure is declared: relaxed choices as parameters with a prior of their own.

:class:`Edges` holds, for each of E edges, weights :math:`\alpha \in \Delta^{K-1}` over K operations; :class:`Gates`
holds n numbers in [0, 1]. Both are one parameter named ``structure``: within a network that goes through
:func:`~pyrobnn.model.bayesianize` it becomes one Pyro site ``….structure``, however many cells share the module, with a
relaxed categorical (Bernoulli) prior in addition to the priors of the weights. Outside it is a constant: all choices
weigh the same. Rules for weights pass structure by; the rule ``("*structure*", None)`` fixes it at its present value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.model.priors.base import Prior
from pyrobnn.model.priors.structure import BinaryConcretePrior, ConcretePrior

__all__ = ["Edges", "Gates", "StructureSite"]

Dimensions = dict[str, tuple[tuple[str, tuple[str, ...]], ...]]


class StructureSite(nn.Module):
    """Base of modules whose one parameter ``structure`` is a site with a prior of its own.

    Args:
        shape: The parameter's shape.
        value: The value of all its elements where it is no site, and where most guides start.
        prior: The class of its prior.
        temperature: Temperature of the prior.
        logits: Its logits, or None.
        dimensions: For each dimension its name and the names of what lies along it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        value: float,
        prior: type[ConcretePrior] | type[BinaryConcretePrior],
        temperature: float,
        logits: Tensor | None,
        dimensions: tuple[tuple[str, tuple[str, ...]], ...],
    ) -> None:
        super().__init__()
        self.structure = nn.Parameter(torch.full(shape, value), requires_grad=False)
        self._value = value
        self._prior = (prior, temperature, logits)
        self.dimensions: Dimensions = {"structure": dimensions}
        self.own_prior("structure")  # refuses what does not fit

    def own_prior(self, name: str) -> Prior:
        """The prior of the parameter, which :func:`~pyrobnn.bayesianize` reads."""
        kind, temperature, logits = self._prior
        return kind(self.structure.shape, temperature, logits)

    def reset_parameters(self) -> None:
        """Lets all choices weigh the same again."""
        with torch.no_grad():
            self.structure.fill_(self._value)

    def row(self, index: int) -> Tensor:
        """``structure[index]``; all rows of a draw are unbound in one operation, at the first access."""
        value = self.structure
        if value.grad_fn is None or not torch.is_grad_enabled():
            return value[index]
        rows: Any = getattr(value, "rows", None)
        if rows is None:
            # Copies, since views would keep alive the tensor that keeps them.
            rows = torch.unbind_copy(value)  # type: ignore[func-returns-value]
            value.rows = rows  # type: ignore[attr-defined]
        return rows[index]

    def extra_repr(self) -> str:
        """Dimensions and their sizes."""
        return ", ".join(f"{name}={len(labels)}" for name, labels in self.dimensions["structure"])


@explained
class Edges(StructureSite):
    """The choice among operations on each of several edges: one site ``[E, K]``.

    Args:
        names: The edges: names, or pairs of nodes ``(source, target)``, which are named ``"source->target"`` and can be
            drawn as a graph.
        operations: The names of the K operations, at least two.
        temperature: Temperature of the relaxed categorical prior.
        logits: Prior logits, broadcast to ``[E, K]``; equal if None.
        dims: What the two dimensions are called, in ArviZ for example.

    Attributes:
        structure: The weights of the operations; rows are points of the simplex.
        endpoints: The edges' pairs of nodes; empty if any was given by name.

    Raises:
        ValueError: If names are repeated or too few, or the prior's temperature or logits do not fit.
    """

    def __init__(
        self,
        names: Sequence[str | tuple[Any, Any]],
        operations: Sequence[str],
        *,
        temperature: float = 1.0,
        logits: Tensor | None = None,
        dims: tuple[str, str] = ("edge", "operation"),
    ) -> None:
        if isinstance(names, str):
            raise ValueError(f"names: expected a list of names or pairs, got {names!r}.")
        pairs = [(str(edge[0]), str(edge[1])) for edge in names if isinstance(edge, tuple)]
        written = [edge if isinstance(edge, str) else "->".join(map(str, edge)) for edge in names]
        edges, choices = _unique("names", written, 1), _unique("operations", operations, 2)
        shape, dimensions = (len(edges), len(choices)), ((dims[0], edges), (dims[1], choices))
        super().__init__(shape, 1.0 / len(choices), ConcretePrior, temperature, logits, dimensions)
        self.names, self.operations = edges, choices
        self.endpoints = pairs if len(pairs) == len(edges) else []

    def index(self, name: str | tuple[Any, Any]) -> int:
        """The row of an edge.

        Raises:
            ValueError: If there is no such edge.
        """
        written = name if isinstance(name, str) else "->".join(map(str, name))
        if written not in self.names:
            raise ValueError(f"edge: there is no edge {written!r}; there are {', '.join(self.names[:8])}.")
        return self.names.index(written)


@explained
class Gates(StructureSite):
    """Whether each of n things is there: one site ``[n]``.

    Args:
        names: Their names, or their number n.
        temperature: Temperature of the relaxed Bernoulli prior.
        logits: Prior log odds of being there, broadcast to ``[n]``; even if None.
        dim: What the dimension is called, in ArviZ for example.

    Raises:
        ValueError: If names are repeated or missing, or the prior's temperature or logits do not fit.
    """

    def __init__(
        self,
        names: Sequence[str] | int = 1,
        *,
        temperature: float = 1.0,
        logits: Tensor | None = None,
        dim: str = "gate",
    ) -> None:
        if isinstance(names, int):
            check_positive_int("names", names)
            names = [str(index) for index in range(names)]
        gates = _unique("names", names, 1)
        if not isinstance(dim, str):
            raise TypeError(f"dim: expected the dimension's name, got {dim!r}.")
        super().__init__((len(gates),), 0.5, BinaryConcretePrior, temperature, logits, ((dim, gates),))
        self.names = gates


def _unique(argument: str, names: Sequence[str], fewest: int) -> tuple[str, ...]:
    found = tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{argument}: expected a list of names, got {names!r}.")
    if len(found) < fewest or len(set(found)) != len(found):
        raise ValueError(f"{argument}: expected at least {fewest} different names, got {list(found)!r}.")
    return found
