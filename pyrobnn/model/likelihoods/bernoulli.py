"""Binary targets."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.classes import ClassLikelihood
from pyrobnn.model.likelihoods.constant import mean_target
from pyrobnn.model.likelihoods.information import FisherInformation

__all__ = ["Bernoulli"]


@explained
class Bernoulli(ClassLikelihood):
    """Binary targets (0 or 1) of the output's shape, with probability sigmoid(output) of a 1.

    Args:
        missing: Whether labels may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`.
    """

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The outputs as ``logits``."""
        return {"logits": outputs}

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.Bernoulli:
        """Bernoulli with these ``logits``."""
        return dist.Bernoulli(logits=parameters["logits"])

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probabilities of 0 and 1 on a new last dimension."""
        return torch.stack([F.logsigmoid(-outputs), F.logsigmoid(outputs)], -1)

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """``p (1 - p)``."""
        if type(self) is not Bernoulli:  # a subclass may have another density
            return super().fisher_information(outputs)
        return FisherInformation.of_independent(outputs.sigmoid() * (-outputs).sigmoid())

    @property
    def is_concave(self) -> bool:
        """Log sigmoid is concave."""
        return type(self) is Bernoulli

    def constant_outputs(self, outputs: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """The log odds of the share of ones."""
        if type(self) is not Bernoulli:  # a subclass may have another density
            return super().constant_outputs(outputs, y, weight)
        share = mean_target(self, y, weight)
        return share.logit(eps=1e-6).to(outputs.dtype)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """That of the outputs."""
        return outputs.shape

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Floating-point zeros and ones."""
        self.check_shape(outputs, y)
        values = self.observed_values(y) if y.is_floating_point() else y
        if not y.is_floating_point() or not bool(((values == 0) | (values == 1)).all()):
            self.refuse_targets(y, "floating-point targets that are 0 or 1", floating=True)
