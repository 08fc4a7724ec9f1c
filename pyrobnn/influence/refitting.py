"""The maximum itself: a point that is refitted to convergence, with training rows left out if these are named.

Influence is a derivative at a maximum, which stochastic training only comes near; and what a removal does is known only
by training without the rows. Both are one optimization from a point that is close: L-BFGS on the whole data set (Liu &
Nocedal 1989, by SciPy), which for convex models ends at the one maximum.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.curvature.log_joint import LogJoint
from pyrobnn.guides.base import Guide
from pyrobnn.guides.map import MAP
from pyrobnn.influence.point import covered_sites, point_of
from pyrobnn.influence.training_rows import TrainingRows
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.draws import installed_buffers
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["refit"]


@explained
def refit(
    model: SupervisedModel,
    guide: Guide,
    loader: Iterable[Any],
    *,
    without: Sequence[int] = (),
    sites: Collection[str] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    batch: Reader | None = None,
) -> MAP:
    """Maximizes the log joint density of the whole data set from a guide's point, in evaluation mode (no dropout).

    Args:
        model: The model that was fitted.
        guide: A point, as for :class:`PointInfluence`; it is left as it is.
        loader: Training data.
        without: Rows that count nothing, as if they were not there.
        sites: The weights that move, such as those of the last layer; all weights of the network if None.
        tolerance: Largest entry of the gradient at the end, in nats for the whole data set. A line search cannot go
            below the square root of the rounding errors of the loss: about 1e-7 in double precision, 1e-2 in single.
        max_iterations: Most iterations; a warning gives the gradient that is left if they do not reach the tolerance.
        batch: How to read batches.

    Returns:
        A MAP guide there.

    Raises:
        TypeError: If the model is no :class:`~pyrobnn.SupervisedModel`, or rows are no numbers.
        ValueError: If the guide is no point, the data are wrong, or a number is out of range.
    """
    check_positive("tolerance", tolerance)
    check_positive_int("max_iterations", max_iterations)
    from scipy.optimize import minimize  # loaded where it is needed

    data = TrainingRows(model, loader, batch)
    values = point_of(model, guide)
    log_joint = LogJoint(model, values, covered_sites(model, guide, sites))
    batches = data.batches if len(without) == 0 else _without(data, without)
    start = log_joint.point

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = log_joint.value_and_gradient(torch.as_tensor(flat).to(start), batches)
        return -value, -gradient.cpu().numpy()

    options = {"maxiter": max_iterations, "gtol": tolerance, "ftol": 0.0, "maxcor": 30, "maxfun": 20 * max_iterations}
    with gradients_enabled(), evaluating(model), frozen_buffers(model), installed_buffers(model, values.buffers):
        found = minimize(loss, start.double().cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    left = float(np.abs(found.jac).max())
    rounding = 10.0 * (torch.finfo(start.dtype).eps * max(1.0, abs(float(found.fun)))) ** 0.5  # of the line search
    if not left <= max(tolerance, rounding):
        warnings.warn(
            f"max_iterations: after {found.nit} iterations the gradient has an entry of {left:.3g}, above "
            f"tolerance={tolerance:g}; raise max_iterations, or use a network in double precision.",
            stacklevel=2,
        )
    with torch.no_grad():
        moved = log_joint.moved(torch.as_tensor(found.x).to(start))
    return MAP(model, init={name: value.detach().clone() for name, value in moved.items()})


def _without(data: TrainingRows, rows: Sequence[int]) -> list[Batch]:
    """The batches, with weight 0 for some rows."""
    weight: Tensor = data.weight.clone()
    weight[data.check_rows(rows)] = 0.0
    own = weight.split([batch.rows for batch in data.batches])
    return [
        Batch.of(batch.inputs, batch.targets, part.to(_float_of(batch)))
        for batch, part in zip(data.batches, own, strict=True)
    ]


def _float_of(batch: Batch) -> torch.dtype:
    inputs = batch.inputs
    return inputs.dtype if isinstance(inputs, Tensor) and inputs.is_floating_point() else torch.get_default_dtype()
