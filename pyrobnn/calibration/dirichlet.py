r"""Dirichlet scaling: a linear map of log probabilities,

.. math::  c(p) = \mathrm{softmax}(W \log p + b).

It is the posterior of the class where the predicted p is Dirichlet-distributed in each class. Unlike matrix scaling it
sees how the probabilities are normalized: a constant added to :math:`\log p` matters.

Kull et al., "Beyond temperature scaling", NeurIPS 2019; they penalize off-diagonal weights and shifts, by two numbers
from cross-validation, in place of the prior here.
"""

from __future__ import annotations

from torch import Tensor

from pyrobnn.calibration.matrix import MatrixScaling
from pyrobnn.core.explanations import explained

__all__ = ["DirichletScaling"]


@explained
class DirichletScaling(MatrixScaling):
    """A linear map of log probabilities; arguments and attributes are those of :class:`MatrixScaling`."""

    @staticmethod
    def mapped(log_probs: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Log probabilities ``[..., C]`` under the map with these parameters."""
        return (log_probs @ parameters["weight"].mT + parameters["bias"]).log_softmax(-1)
