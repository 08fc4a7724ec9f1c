"""Diagnostics: ArviZ, convergence in function space, importance ratios, and one call that asks them all."""

from pyrobnn.diagnostics.arviz import GROUPS, to_arviz
from pyrobnn.diagnostics.checks import Check, CheckReport, check
from pyrobnn.diagnostics.function_space import FunctionSpaceDiagnostics, function_space_diagnostics
from pyrobnn.diagnostics.importance import importance_k_hat, k_hat_threshold, last_layer_sites
from pyrobnn.diagnostics.simulation_based_calibration import SimulationBasedCalibration, sbc
from pyrobnn.diagnostics.weights import WeightStatistics, weight_statistics

__all__ = [
    "GROUPS",
    "Check",
    "CheckReport",
    "FunctionSpaceDiagnostics",
    "SimulationBasedCalibration",
    "WeightStatistics",
    "check",
    "function_space_diagnostics",
    "importance_k_hat",
    "k_hat_threshold",
    "last_layer_sites",
    "sbc",
    "to_arviz",
    "weight_statistics",
]
