"""Unsupervised domain adaptation: labeled sources, unlabeled targets; one file a loss, one function that trains."""

from models.domain_adaptation.adapt import adapt
from models.domain_adaptation.adda import adapt_encoder
from models.domain_adaptation.alignment import DomainAlignment
from models.domain_adaptation.batches import AlignmentLoss, Domain, DomainBatch
from models.domain_adaptation.centroid_alignment import CentroidAlignment
from models.domain_adaptation.classifier_discrepancy import ClassifierDiscrepancy
from models.domain_adaptation.cluster_alignment import ClusterAlignment, ClusterRamp
from models.domain_adaptation.domain_adversarial import DomainAdversarial, DomainRamp, domain_discriminator
from models.domain_adaptation.gradient_reversal import reverse_gradient
from models.domain_adaptation.mean_discrepancy import MeanDiscrepancy
from models.domain_adaptation.selection import density_ratio, importance_weighted_risk, target_entropy
from models.domain_adaptation.teachers import MeanTeacher, PosteriorTeacher, StudentTeacher, TemporalTeacher
from models.domain_adaptation.virtual_adversarial import VirtualAdversarial

__all__ = [
    "AlignmentLoss",
    "CentroidAlignment",
    "ClassifierDiscrepancy",
    "ClusterAlignment",
    "ClusterRamp",
    "Domain",
    "DomainAdversarial",
    "DomainAlignment",
    "DomainBatch",
    "DomainRamp",
    "MeanDiscrepancy",
    "MeanTeacher",
    "PosteriorTeacher",
    "StudentTeacher",
    "TemporalTeacher",
    "VirtualAdversarial",
    "adapt",
    "adapt_encoder",
    "density_ratio",
    "domain_discriminator",
    "importance_weighted_risk",
    "reverse_gradient",
    "target_entropy",
]
