"""Curvature of the log likelihood at given weights: Gauss–Newton matrices, dense, diagonal and Kronecker-factored."""

from pyrobnn.curvature.blocks import Block, DiagonalBlock, KroneckerBlock
from pyrobnn.curvature.dense import DenseBlock
from pyrobnn.curvature.evidence import best_multiplier, tune_multipliers
from pyrobnn.curvature.features import LastLayer
from pyrobnn.curvature.fisher import fisher_roots
from pyrobnn.curvature.fitting import Curvature, fill, fit_curvature
from pyrobnn.curvature.gauss_newton import gauss_newton, outputs_and_jacobians
from pyrobnn.curvature.gaussian import BlockGaussian
from pyrobnn.curvature.held_out import held_out_log_likelihoods, tune_on_held_out
from pyrobnn.curvature.hessian import fill_by_hessian
from pyrobnn.curvature.jacobians import Derivatives
from pyrobnn.curvature.kronecker import KroneckerFactors, add_batch, kronecker_layers
from pyrobnn.curvature.last_layer import find_last_layer
from pyrobnn.curvature.layout import Group, Structure, check_structure, lay_out

__all__ = [
    "Block",
    "BlockGaussian",
    "Curvature",
    "DenseBlock",
    "Derivatives",
    "DiagonalBlock",
    "Group",
    "KroneckerBlock",
    "KroneckerFactors",
    "LastLayer",
    "Structure",
    "add_batch",
    "best_multiplier",
    "check_structure",
    "fill",
    "fill_by_hessian",
    "find_last_layer",
    "fisher_roots",
    "fit_curvature",
    "gauss_newton",
    "held_out_log_likelihoods",
    "kronecker_layers",
    "lay_out",
    "outputs_and_jacobians",
    "tune_multipliers",
    "tune_on_held_out",
]
