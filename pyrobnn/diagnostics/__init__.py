"""Diagnostics: ArviZ, convergence of chains and in function space, importance ratios, simulation-based calibration,
generalization."""

from pyrobnn.diagnostics import generalization
from pyrobnn.diagnostics.arviz import GROUPS, to_arviz
from pyrobnn.diagnostics.check_report import Check, CheckReport
from pyrobnn.diagnostics.checks import check
from pyrobnn.diagnostics.estimator_report import EstimatorReport
from pyrobnn.diagnostics.estimator_report import report as estimator_report
from pyrobnn.diagnostics.function_space import FunctionSpaceDiagnostics, function_space_diagnostics
from pyrobnn.diagnostics.importance import importance_k_hat, k_hat_threshold, last_layer_sites
from pyrobnn.diagnostics.sampling import (
    LogDensityDiagnostics,
    StepSizeAgreement,
    Temperature,
    energy_bfmi,
    kinetic_temperature,
    log_density_diagnostics,
    step_size_agreement,
)
from pyrobnn.diagnostics.simulation_based_calibration import SimulationBasedCalibration, sbc
from pyrobnn.diagnostics.weights import WeightStatistics, weight_statistics

__all__ = [
    "GROUPS",
    "Check",
    "CheckReport",
    "EstimatorReport",
    "FunctionSpaceDiagnostics",
    "LogDensityDiagnostics",
    "SimulationBasedCalibration",
    "StepSizeAgreement",
    "Temperature",
    "WeightStatistics",
    "check",
    "energy_bfmi",
    "estimator_report",
    "function_space_diagnostics",
    "generalization",
    "importance_k_hat",
    "k_hat_threshold",
    "kinetic_temperature",
    "last_layer_sites",
    "log_density_diagnostics",
    "sbc",
    "step_size_agreement",
    "to_arviz",
    "weight_statistics",
]
