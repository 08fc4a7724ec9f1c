"""Structure as a random variable: choices inside networks, and the posterior over them."""

from pyrobnn.structure.collapse import collapse
from pyrobnn.structure.distribution import (
    StructureDistribution,
    distribution,
    most_probable,
    structure_sites,
    structure_values,
)
from pyrobnn.structure.modules import Choice, Depth, Gate
from pyrobnn.structure.operations import Zero
from pyrobnn.structure.sites import Edges, Gates

__all__ = [
    "Choice",
    "Depth",
    "Edges",
    "Gate",
    "Gates",
    "StructureDistribution",
    "Zero",
    "collapse",
    "distribution",
    "most_probable",
    "structure_sites",
    "structure_values",
]
