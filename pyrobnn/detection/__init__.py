"""Which answers are wrong, and when not to answer: failure prediction, and abstention with a guaranteed risk."""

from pyrobnn.detection.abstention import Abstention
from pyrobnn.detection.failure import failure_table, true_class_uncertainty
from pyrobnn.detection.p_norm import MaxLogitPNorm

__all__ = ["Abstention", "MaxLogitPNorm", "failure_table", "true_class_uncertainty"]
