"""Reports of a model on held-out data: scores with intervals, figures, examples, and how they were made."""

from pyrobnn.assessment.bootstrap import Score
from pyrobnn.assessment.report import ModelReport, report

__all__ = ["ModelReport", "Score", "report"]
