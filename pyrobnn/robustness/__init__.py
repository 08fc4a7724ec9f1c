"""Worst-case inputs, and training against them."""

from pyrobnn.robustness import training
from pyrobnn.robustness.attacks import fgsm, pgd

__all__ = ["fgsm", "pgd", "training"]
