"""Attacks on a posterior predictive, one a file."""

from pyrobnn.robustness.attacks.apgd import APGD, APGDTargeted
from pyrobnn.robustness.attacks.auto_attack import AutoAttack, AutoAttackResult, auto_attack
from pyrobnn.robustness.attacks.balls import L2, Ball, LInf
from pyrobnn.robustness.attacks.base import Attack, AttackResult, QueryBudgetWarning
from pyrobnn.robustness.attacks.carlini_wagner_l2 import CarliniWagnerL2
from pyrobnn.robustness.attacks.carlini_wagner_margin import CarliniWagnerMargin
from pyrobnn.robustness.attacks.dlr import DLR
from pyrobnn.robustness.attacks.fab import FAB
from pyrobnn.robustness.attacks.feature import FeatureAttack
from pyrobnn.robustness.attacks.fgsm import FGSM
from pyrobnn.robustness.attacks.lbfgs import LBFGS
from pyrobnn.robustness.attacks.losses import ClassLoss, CrossEntropy, Loss, Margin
from pyrobnn.robustness.attacks.mim import MIM
from pyrobnn.robustness.attacks.minimal import MinimalNormAttack
from pyrobnn.robustness.attacks.pgd import PGD
from pyrobnn.robustness.attacks.problem import Problem
from pyrobnn.robustness.attacks.spsa import SPSA
from pyrobnn.robustness.attacks.square import Square
from pyrobnn.robustness.attacks.target import GradientMaskingWarning
from pyrobnn.robustness.attacks.uncertainty import Evasion, Uncertainty

__all__ = [
    "APGD",
    "DLR",
    "FAB",
    "FGSM",
    "L2",
    "LBFGS",
    "MIM",
    "PGD",
    "SPSA",
    "APGDTargeted",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "AutoAttackResult",
    "Ball",
    "CarliniWagnerL2",
    "CarliniWagnerMargin",
    "ClassLoss",
    "CrossEntropy",
    "Evasion",
    "FeatureAttack",
    "GradientMaskingWarning",
    "LInf",
    "Loss",
    "Margin",
    "MinimalNormAttack",
    "Problem",
    "QueryBudgetWarning",
    "Square",
    "Uncertainty",
    "auto_attack",
]
