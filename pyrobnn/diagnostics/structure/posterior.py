r"""Reading a posterior over structure: a table, the most probable structure, structures as draws.

Each relaxed choice is read as the discrete one that its largest element stands for. Under
:class:`~pyrobnn.guides.ConcreteStructure` its probabilities are exact, :math:`\mathrm{softmax}(\theta / \beta)`; under
any other guide they are frequencies among draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.guides import ConcreteStructure, Guide
from pyrobnn.layers.structure.sites import Edges, Gates, StructureSite
from pyrobnn.model.bayesianize import bayesian_modules

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Structure", "StructureDistribution", "distribution", "most_probable", "structure_sites", "structure_values"]

Structure = Mapping[str, Mapping[str, str | bool]]
"""What is chosen at each site: ``{site: {edge: operation}}``, and for gates ``{site: {gate: True or False}}``."""


@dataclass(frozen=True, repr=False)
class StructureDistribution:
    """Probabilities of structures; ``print`` it, or leave it as a notebook cell's last line.

    Attributes:
        probabilities: By site: of each operation on each edge ``[E, K]``, or of each gate to be open ``[n]``.
        modules: The module that declares each site.
    """

    probabilities: dict[str, Tensor]
    modules: dict[str, StructureSite]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict for each edge (gate): ``site``, ``edge``, ``choice`` (the most probable), ``probabilities``."""
        return [row for name in self.probabilities for row in self._rows(name)]

    def entropy(self) -> Tensor:
        """The entropy of the discrete structure in nats: the sum over edges and gates, which are independent."""
        total = torch.zeros(())
        for probabilities in self.probabilities.values():
            both = probabilities if probabilities.dim() > 1 else torch.stack([probabilities, 1.0 - probabilities], -1)
            total = total - torch.xlogy(both, both).sum().to(total)
        return total

    def most_probable(self) -> dict[str, dict[str, Any]]:
        """The most probable choice on each edge, and for each gate whether it is open."""
        return {site: {row["edge"]: row["choice"] for row in self._rows(site)} for site in self.probabilities}

    def plot(self, site: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draws a site: the graph of a cell whose edges are pairs of nodes, else one bar for each edge or gate.

        In the graph each operation of an edge is an arc, as wide and as dark as it is probable; the operation
        ``"zero"`` is left out, so that an edge without arcs is absent.

        Args:
            site: The site; it may be left out if there is but one.
            ax: Axes to draw into; new ones if None.

        Returns:
            The axes.

        Raises:
            ValueError: If there is no such site, or several and none is named.
        """
        from pyrobnn.diagnostics.structure.plot import draw_bars, draw_cell

        if site is None and len(self.probabilities) == 1:
            site = next(iter(self.probabilities))
        if site not in self.probabilities:
            raise ValueError(f"site: expected one of {', '.join(self.probabilities)}, got {site!r}.")
        module, table = self.modules[site], self.probabilities[site].tolist()
        if isinstance(module, Edges) and module.endpoints:
            return draw_cell(module.endpoints, module.operations, table, ax)
        if isinstance(module, Edges):
            return draw_bars(module.names, module.operations, table, ax)
        names = module.dimensions["structure"][0][1]
        return draw_bars(names, ("open", "closed"), [[p, 1.0 - p] for p in table], ax)

    def __str__(self) -> str:
        lines = []
        for name in self.probabilities:
            rows = self._rows(name)
            width = max(len(row["edge"]) for row in rows)
            lines.append(name)
            for row in rows:
                cells = "  ".join(f"{choice} {p:.3f}" for choice, p in row["probabilities"].items())
                lines.append(f"  {row['edge'].ljust(width)}  {cells}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def _rows(self, site: str) -> list[dict[str, Any]]:
        module, table = self.modules[site], self.probabilities[site].tolist()
        if isinstance(module, Edges):
            by_edge = [dict(zip(module.operations, row, strict=True)) for row in table]
            chosen: list[Any] = [max(row, key=row.__getitem__) for row in by_edge]
        else:
            by_edge, chosen = [{"open": p} for p in table], [p > 0.5 for p in table]
        names = module.dimensions["structure"][0][1]
        return [
            {"site": site, "edge": name, "choice": choice, "probabilities": row}
            for name, choice, row in zip(names, chosen, by_edge, strict=True)
        ]


@explained
def distribution(model: nn.Module, guide: Guide, *, num_samples: int = 1000) -> StructureDistribution:
    """The posterior's distribution over structures.

    Args:
        model: The model.
        guide: Its guide.
        num_samples: Draws that frequencies are taken among, for sites that no ``ConcreteStructure`` is for.

    Returns:
        The table.

    Raises:
        ValueError: If the model has no site of structure, or the guide lacks one.
    """
    check_positive_int("num_samples", num_samples)
    modules = structure_sites(model)
    if missing := [name for name in modules if name not in guide.layout]:
        raise ValueError(f"guide: it lacks the model's site {missing[0]!r}; pass the guide built from this model.")
    exact = {name: part for part in guide.parts_of(ConcreteStructure) for name in part.layout}
    found: dict[str, Tensor] = {}
    draws: Mapping[str, Tensor] | None = None
    for name, module in modules.items():
        if name in exact:
            found[name] = exact[name].probabilities(name).detach()
            continue
        draws = guide.sample(num_samples) if draws is None else draws
        value = draws[name]
        if isinstance(module, Edges):
            counted = nn.functional.one_hot(value.argmax(-1), value.shape[-1])
            found[name] = counted.to(value.dtype).mean(0)
        else:
            found[name] = (value > 0.5).to(value.dtype).mean(0)
    return StructureDistribution(found, modules)


@explained
def most_probable(model: nn.Module, guide: Guide, *, num_samples: int = 1000) -> dict[str, dict[str, Any]]:
    """The most probable structure, ``{site: {edge: operation}}`` and ``{site: {gate: True or False}}``.

    Arguments and errors as for :func:`distribution`.
    """
    return distribution(model, guide, num_samples=num_samples).most_probable()


@explained
def structure_values(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    """A structure as values of the sites: one-hot rows, zeros and ones.

    Args:
        model: The model.
        structure: The choice on every edge and gate of every site.

    Returns:
        ``{site: [*site shape]}``.

    Raises:
        ValueError: If the structure names something that is not there, or leaves something out.
    """
    modules = structure_sites(model)
    _check_names("site", structure, modules)
    values = {}
    for site, module in modules.items():
        names = module.dimensions["structure"][0][1]
        _check_names(f"edge of {site!r}", structure[site], names)
        value = torch.zeros_like(module.structure)
        for row, name in enumerate(names):
            choice = structure[site][name]
            if isinstance(module, Gates):
                value[row] = float(bool(choice))
                continue
            assert isinstance(module, Edges)
            if choice not in module.operations:
                raise ValueError(
                    f"structure: edge {name!r} has no operation {choice!r}; it has {', '.join(module.operations)}."
                )
            value[row, module.operations.index(str(choice))] = 1.0
        values[site] = value
    return values


@explained
def structure_sites(model: nn.Module) -> dict[str, StructureSite]:
    """The modules that declare the model's sites of structure, by site.

    Raises:
        ValueError: If there is none.
    """
    found: dict[str, StructureSite] = {}
    for converted in bayesian_modules(model):
        modules = dict(converted.network.named_modules())
        for name in converted.parameter_names:
            owner = modules[name.rpartition(".")[0]]
            if isinstance(owner, StructureSite):
                found[full_name(converted, name)] = owner
    if not found:
        raise ValueError(
            "model: it has no site of structure; put a Choice, Gate or Depth of pyrobnn.structure into the network."
        )
    return found


def _check_names(kind: str, given: Any, known: Any) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"structure: there is no {kind} {name!r}; there are {', '.join(list(known)[:8])}.")
    for name in known:
        if name not in given:
            raise ValueError(f"structure: it says nothing of the {kind} {name!r}.")
