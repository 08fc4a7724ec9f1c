"""What is out of distribution and which answers are wrong: scores, failure prediction, abstention at a stated risk."""

from pyrobnn.detection.abstention import Abstention
from pyrobnn.detection.base import Detector
from pyrobnn.detection.confidnet import ConfidNet
from pyrobnn.detection.disagreement import ModelVariance, MutualInformation, VoteShare
from pyrobnn.detection.evaluation import DETECTORS, evaluate
from pyrobnn.detection.failure import failure_table, true_class_uncertainty
from pyrobnn.detection.gaussian_features import Mahalanobis, RelativeMahalanobis
from pyrobnn.detection.neighbors import KNN
from pyrobnn.detection.network_outputs import NetworkOutputs, network_outputs
from pyrobnn.detection.odin import ODIN
from pyrobnn.detection.output_scores import (
    GEN,
    Energy,
    Entropy,
    MaxLogit,
    MaxSoftmax,
    energy,
    generalized_entropy,
    max_logit,
    max_softmax,
    softmax_entropy,
)
from pyrobnn.detection.p_norm import MaxLogitPNorm
from pyrobnn.detection.report import DetectionReport, DetectionRow
from pyrobnn.detection.virtual_logit import ViM

__all__ = [
    "DETECTORS",
    "GEN",
    "KNN",
    "ODIN",
    "Abstention",
    "ConfidNet",
    "DetectionReport",
    "DetectionRow",
    "Detector",
    "Energy",
    "Entropy",
    "Mahalanobis",
    "MaxLogit",
    "MaxLogitPNorm",
    "MaxSoftmax",
    "ModelVariance",
    "MutualInformation",
    "NetworkOutputs",
    "RelativeMahalanobis",
    "ViM",
    "VoteShare",
    "energy",
    "evaluate",
    "failure_table",
    "generalized_entropy",
    "max_logit",
    "max_softmax",
    "network_outputs",
    "softmax_entropy",
    "true_class_uncertainty",
]
