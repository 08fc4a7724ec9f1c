"""Decisions taken with uncertainty: which predictions to trust."""

from pyrobnn.decisions.selective import RiskCoverage, aurc, risk_coverage

__all__ = ["RiskCoverage", "aurc", "risk_coverage"]
