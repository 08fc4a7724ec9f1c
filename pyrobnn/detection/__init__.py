"""Detection of abnormal inputs from scores; higher always means more abnormal."""

from pyrobnn.detection.out_of_distribution import aupr, auroc, detection_report, fpr_at_tpr

__all__ = ["aupr", "auroc", "detection_report", "fpr_at_tpr"]
