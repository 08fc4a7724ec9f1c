r"""Networks with stochastic architectures: a fixed, finite set of structures that share one set of weights.

.. math::  \min_w\; \mathbb{E}_{\alpha \sim U(S)} \big[ -\log p(D \mid w, \alpha) \big] - \log p(w), \qquad
           p(y \mid x) = \frac{1}{|S|} \sum_{\alpha \in S} p(y \mid x, w, \alpha).

The structures are one-hot and not learned; the weights are points. As a posterior this is an ensemble of |S| members
that differ in structure alone, so it brings what ensembles bring: **running statistics of each member's own**, in
training, prediction, recalibration and checkpoints. What a layer sees depends on the structure before it; statistics
that all structures share fit none of them, which lets the accuracy in training (under a batch's own statistics) and
that in prediction fall apart.

Deng, Dong, Zhang & Zhu, *Understanding and Exploring the Network with Stochastic Architectures* (2020). Its cells are
wired otherwise; here they are those of :mod:`models.dbsn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import pyrobnn as pb
from models.dbsn import dbsn
from pyrobnn import guides
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.diagnostics.structure.posterior import Structure
from pyrobnn.guides.ensembles.base import Ensemble
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.initialization import Init
from pyrobnn.model.layout import Layout, Site
from pyrobnn.steps.member_buffers import MemberBuffers
from pyrobnn.steps.points import PointScore
from pyrobnn.structure import Edges, structure_sites, structure_values

__all__ = ["StructureSet", "nsa", "random_structures"]


def nsa(num_data: int, *, nodes: int = 4, cells: int = 8, stages: int = 3, **options: Any) -> pb.SupervisedModel:
    """The model, in the paper's three stages of eight cells; pair it with :class:`StructureSet`.

    Args:
        num_data: Number of training data.
        nodes: Nodes of a cell.
        cells: Cells in each stage.
        stages: Number of stages.
        **options: Further options of :func:`models.dbsn.dbsn`.
    """
    return dbsn(num_data, nodes=nodes, cells=cells, stages=stages, **options)


class StructureSet(Ensemble):
    """Structures from a fixed set, equally probable, and one point for the weights.

    A draw is a structure of the set. Train it by :func:`pyrobnn.fit`, whose objective has no term for the structure.

    Args:
        model: The Pyro model.
        structures: The set, each of the form of :func:`~pyrobnn.structure.most_probable`, or the number of structures
            that are drawn from the prior.
        init: Where the weights start, as for :class:`~pyrobnn.guides.MAP`.
        own_statistics: Whether each structure has running statistics of its own; otherwise all share the model's.
        structures_per_step: Structures that a training step visits, chosen at random; all of them if None.

    Raises:
        ValueError: If the model has no site of structure, or the set is empty, too large or does not fit.
    """

    def __init__(
        self,
        model: pb.SupervisedModel,
        structures: int | Sequence[Structure] = 5,
        init: Init = None,
        *,
        own_statistics: bool = True,
        structures_per_step: int | None = 1,
    ) -> None:
        chosen = random_structures(model, structures) if isinstance(structures, int) else list(structures)
        super().__init__(model, len(chosen), members_per_step=structures_per_step)
        self.own_statistics = own_statistics
        if not own_statistics:
            self.buffers_by_member = MemberBuffers(nn.Module(), len(chosen))  # none
        values = [structure_values(model, structure) for structure in chosen]
        self.structural = list(values[0])
        for index, name in enumerate(self.structural):
            self.register_buffer(f"structures_{index}", torch.stack([value[name] for value in values]))
        weights = [name for name in self.layout if name not in values[0]]
        self.weights = guides.MAP(model, init, sites=weights)

    def config(self) -> dict[str, Any]:
        """Constructor arguments; the structures themselves are in the state dict."""
        return {
            "structures": self.num_members,
            "own_statistics": self.own_statistics,
            "structures_per_step": self.members_per_step,
        }

    def member(self, index: int) -> dict[str, Tensor]:
        """One structure, and the weights with gradients."""
        return self._joined({name: value[index] for name, value in self._structures().items()}, self._points.point())

    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """The structures of members ``[K]``, each with the same weights."""
        chosen = {name: value[members] for name, value in self._structures().items()}
        return self._joined(chosen, self._points.sample(len(members)))

    def score(self) -> PointScore:
        """``-log p`` of the weights; nothing for the structure, which is not learned."""
        return _WeightScore(self.layout, frozenset(self.structural))

    @property
    def _points(self) -> Any:
        """The weights' guide, read past Pyro's attribute hooks."""
        return self._modules["weights"]

    def _structures(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(f"structures_{index}") for index, name in enumerate(self.structural)}

    def _joined(self, chosen: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
        both = chosen | weights
        return {name: both[name] for name in self.layout}


class _WeightScore(PointScore):
    """``-log p`` of all sites but those of structure."""

    def __init__(self, layout: Layout, structural: frozenset[str]) -> None:
        super().__init__(layout)
        self._structural = structural

    def of_site(self, site: Site, value: Tensor, term: PriorTerm, component: Tensor | None) -> Tensor:
        if site.name in self._structural:
            return value.new_zeros(())
        return super().of_site(site, value, term, component)


def random_structures(model: pb.SupervisedModel, count: int) -> list[dict[str, dict[str, Any]]]:
    """Different structures drawn from the prior, in the form of :func:`~pyrobnn.structure.most_probable`.

    Args:
        model: The model.
        count: Their number.

    Raises:
        ValueError: If ``count`` is no positive int, the model has no site of structure, or too few structures.
    """
    check_positive_int("count", count)
    modules = structure_sites(model)
    priors = {name: site.prior for name, site in Layout.of(model, sites=modules).items()}
    found: list[dict[str, dict[str, Any]]] = []
    for _ in range(100 * count):
        structure: dict[str, dict[str, Any]] = {}
        for name, module in modules.items():
            names, value = module.dimensions["structure"][0][1], priors[name].sample()
            choices: list[Any] = (
                [module.operations[index] for index in value.argmax(-1)]
                if isinstance(module, Edges)
                else (value > 0.5).tolist()
            )
            structure[name] = dict(zip(names, choices, strict=True))
        if structure not in found:
            found.append(structure)
        if len(found) == count:
            return found
    raise ValueError(f"count: the prior has hardly {count} different structures; found {len(found)}.")
