"""Worst-case inputs."""

from pyrobnn.robustness.attacks import fgsm, pgd

__all__ = ["fgsm", "pgd"]
