"""Curvature of the log likelihood at given weights: Gauss–Newton matrices, dense, diagonal and Kronecker-factored."""

from pyrobnn.curvature.blocks import Block, DenseBlock, DiagonalBlock, KroneckerBlock
from pyrobnn.curvature.evidence import best_multiplier, tune_multipliers
from pyrobnn.curvature.fisher import fisher_roots
from pyrobnn.curvature.fitting import fill
from pyrobnn.curvature.gauss_newton import gauss_newton, outputs_and_jacobians
from pyrobnn.curvature.gaussian import BlockGaussian
from pyrobnn.curvature.kronecker import KroneckerFactors, add_batch, kronecker_layers
from pyrobnn.curvature.layout import Group, Structure, lay_out

__all__ = [
    "Block",
    "BlockGaussian",
    "DenseBlock",
    "DiagonalBlock",
    "Group",
    "KroneckerBlock",
    "KroneckerFactors",
    "Structure",
    "add_batch",
    "best_multiplier",
    "fill",
    "fisher_roots",
    "gauss_newton",
    "kronecker_layers",
    "lay_out",
    "outputs_and_jacobians",
    "tune_multipliers",
]
