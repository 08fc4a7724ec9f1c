r"""The linear datamodeling score: how well predicted removals rank what retraining without groups of rows does.

For a test datum t and groups g of training rows it is Spearman's rank correlation between the predicted change of the
loss, for influence functions the sum over the group's rows, and the loss of models retrained without the group. Park et
al. (2023); Ilyas et al., *Datamodels*, 2022. It compares methods of any units, since only the order counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained

__all__ = ["DatamodelingScore", "linear_datamodeling_score"]


@dataclass(frozen=True)
class DatamodelingScore:
    """Rank correlations.

    Attributes:
        score: The mean over test data.
        standard_error: Its standard error over test data.
        by_test: The correlation of each test datum, ``[T]``; NaN where the losses are all equal.
    """

    score: float
    standard_error: float
    by_test: Tensor


@explained
def linear_datamodeling_score(predicted: Tensor, observed: Tensor) -> DatamodelingScore:
    """Spearman's correlation over groups, for each test datum.

    Args:
        predicted: Predicted changes of the losses of T test data without each of G groups, ``[T, G]``, as
            :meth:`~pyrobnn.influence.Influence.removal` gives them with ``groups=``.
        observed: Losses of models that were trained without them, or changes of them, ``[T, G]``; averages over
            several seeds where training is random.

    Raises:
        TypeError: If they are no floating-point tensors.
        ValueError: If they have different shapes, fewer than three groups, or numbers that are not finite.
    """
    from scipy.stats import rankdata  # loaded where it is needed

    for name, value in (("predicted", predicted), ("observed", observed)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating-point tensor [T, G], got {kind}.")
        if value.dim() != 2 or value.shape[1] < 3 or not value.shape[0]:
            raise ValueError(
                f"{name}: expected [T, G] of at least one test datum and three groups, got {list(value.shape)}."
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: it holds NaN or infinite numbers.")
    if predicted.shape != observed.shape:
        raise ValueError(
            f"observed: expected the shape {list(predicted.shape)} of predicted, got {list(observed.shape)}."
        )
    ranks = [
        torch.as_tensor(rankdata(value.detach().cpu().double().numpy(), axis=1)) for value in (predicted, observed)
    ]
    first, second = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    by_test = (first * second).sum(1) / (first.square().sum(1) * second.square().sum(1)).sqrt()
    known = by_test[by_test.isfinite()]
    error = float(known.std() / len(known) ** 0.5) if len(known) > 1 else float("nan")
    return DatamodelingScore(float(known.mean()) if len(known) else float("nan"), error, by_test)
