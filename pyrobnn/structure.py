"""Structure as a random variable: choices inside networks, and the posterior over them."""

from pyrobnn.diagnostics.structure.collapse import collapse
from pyrobnn.diagnostics.structure.posterior import (
    StructureDistribution,
    distribution,
    most_probable,
    structure_sites,
    structure_values,
)
from pyrobnn.layers.structure.modules import Choice, Depth, Gate
from pyrobnn.layers.structure.operations import Zero
from pyrobnn.layers.structure.sites import Edges, Gates

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
