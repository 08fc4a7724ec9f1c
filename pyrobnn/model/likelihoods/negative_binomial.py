"""Counts that vary more than Poisson's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.distributions import with_cdf
from pyrobnn.model.likelihoods.paired import PairedOutputs
from pyrobnn.model.likelihoods.supports import check_counts

__all__ = ["NegativeBinomial"]


@explained
class NegativeBinomial(PairedOutputs):
    r"""Overdispersed counts: outputs ``[B, 2 D]`` are logarithms of means, then raw total counts.

    Of mean :math:`m = e^{o}` and total count r, the variance is :math:`m + m^2 / r`; it is Poisson for large r. Its
    Fisher information has no closed form and is sampled.

    Args:
        floor: Smallest r.
        dim: Dimension of the outputs that holds logarithms of means, then raw total counts; 1 for images.
        missing: Whether counts may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`.

    Raises:
        ValueError: If ``floor`` is negative, or ``dim`` is no int or the dimension of the data.
    """

    first, second, floored = "logarithms of means", "raw total counts", "total count"

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``total_count`` and ``logits``."""
        log_mean, raw = self.halves(outputs)
        total_count = self.positive(raw)
        return {"total_count": total_count, "logits": log_mean - total_count.log()}

    def distribution(self, parameters: Mapping[str, Tensor]) -> with_cdf.NegativeBinomial:
        """Negative binomial with ``total_count`` and ``logits``."""
        return with_cdf.NegativeBinomial(parameters["total_count"], logits=parameters["logits"])

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Non-negative whole numbers, as floats."""
        self.check_shape(outputs, y)
        check_counts(self, y)
