r"""Failure prediction: which answers are wrong, by the uncertainties that a prediction has and others beside them.

* ``MCP``: one minus the largest mean probability, the plain softmax response;
* ``entropy``: that of the mean probabilities;
* ``mutual information`` of label and weights, for more than one draw;
* ``TCP oracle``: one minus the mean probability :math:`\bar p_{y^*}` of the true class. It needs the labels, so that it
  is no score but a bound for those that learn it (:class:`~pyrobnn.detection.ConfidNet`). An answer of TCP above 1/2 is
  right, one below 1/C is wrong.

Corbière et al., "Addressing failure prediction by learning model confidence", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics.failure import failure_report
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.prediction.held_out import held_out_classes

__all__ = ["failure_table", "true_class_uncertainty"]


@explained
@torch.no_grad()
def true_class_uncertainty(prediction: Prediction, targets: Tensor | None = None) -> Tensor:
    """One minus the mean probability of the true class: an oracle, since it needs the labels.

    Args:
        prediction: Predicted class probabilities ``[N, …, C]``.
        targets: Labels ``[N, …]``; None takes those that came with the prediction's loader.

    Returns:
        ``[n]``, of the labels that were observed; of shape ``[N]`` where each input has one.

    Raises:
        TypeError: If ``prediction`` is no prediction of classes.
        ValueError: If labels do not fit.
    """
    found, labels, mask = held_out_classes(prediction, targets)
    return 1.0 - found.mean[mask].gather(-1, labels.unsqueeze(-1)).squeeze(-1)


@explained
@torch.no_grad()
def failure_table(
    prediction: Prediction, targets: Tensor | None = None, *, scores: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, float]]:
    """How well each uncertainty finds the wrong answers; the plain softmax response is always among them.

    Args:
        prediction: Predicted class probabilities ``[N, …, C]`` of test data.
        targets: Labels ``[N, …]``; None takes those that came with the prediction's loader.
        scores: Further uncertainties by name, ``[N, …]`` each, higher for what is more suspect.

    Returns:
        By score, what :func:`pyrobnn.metrics.failure_report` says: ``"MCP"``, ``"entropy"``, ``"mutual information"``
        (of several draws), the ones given, ``"TCP oracle"``.

    Raises:
        TypeError: If ``prediction`` is no prediction of classes, or a score is no floating-point tensor.
        ValueError: If labels or scores do not fit, a name is taken, or all answers are right or all are wrong.
    """
    found, labels, mask = held_out_classes(prediction, targets)
    uncertainties = {"MCP": found.least_confidence, "entropy": found.total}
    if found.num_samples > 1:
        uncertainties["mutual information"] = found.epistemic
    for name, score in ({} if scores is None else scores).items():
        if name in uncertainties or name == "TCP oracle":
            raise ValueError(f"scores: the table already has a row {name!r}; give yours another name.")
        if not isinstance(score, Tensor) or not score.is_floating_point():
            raise TypeError(f"scores: expected floating-point tensors, got {type(score).__name__} for {name!r}.")
        if score.shape != mask.shape or bool(score.isnan().any()):
            raise ValueError(
                f"scores: expected one number for each label, shape {list(mask.shape)} without NaN, got "
                f"{list(score.shape)} for {name!r}."
            )
        uncertainties[name] = score.to(mask.device)
    wrong = found.predicted[mask] != labels
    rows = {name: failure_report(score[mask], wrong) for name, score in uncertainties.items()}
    return rows | {"TCP oracle": failure_report(true_class_uncertainty(found, targets), wrong)}
