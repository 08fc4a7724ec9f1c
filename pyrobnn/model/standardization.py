r"""Inputs and targets of zero mean and unit standard deviation, and predictions in the targets' own units.

Priors of unit scale, and the default length of training, are made for

.. math::  x' = (x - m_x) / s_x, \qquad y' = (y - m_y) / s_y,

and a prediction of y' is undone by :math:`y = m_y + s_y y'`: means and standard deviations are multiplied by
:math:`s_y`, and log densities lose :math:`\log s_y`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrobnn.model.likelihoods.predictions import Prediction

__all__ = ["Standardizer"]


class Standardizer(nn.Module):
    """Shift and scale of the inputs, and of real-valued targets, of a training set.

    ::

        scaler = pb.Standardizer(x, y)
        loader = DataLoader(TensorDataset(scaler.inputs(x), scaler.targets(y)), batch_size=128, shuffle=True)
        ...
        prediction = scaler.undo(pb.predict(model, guide, scaler.inputs(x_test)))  # in the units of y

    It is a module, so that it has a state dict and moves with ``to``.

    Args:
        x: Inputs ``[N, ...]``. Of a table ``[N, D]`` each column has a shift and a scale of its own; of images and
            sequences all numbers share one of each. What is constant is only shifted.
        y: Targets ``[N, ...]``, by column likewise; NaN (missing) is left out. None if targets are classes.

    Raises:
        TypeError: If ``x`` or ``y`` is no floating-point tensor; classes are not standardized.
        ValueError: If there are fewer than two rows, or numbers that are not finite.
    """

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor | None
    y_scale: Tensor | None

    def __init__(self, x: Tensor, y: Tensor | None = None) -> None:
        super().__init__()
        for name, values in (("x", x), ("y", y)):
            loc, scale = (None, None) if values is None and name == "y" else _moments(name, values)
            self.register_buffer(f"{name}_loc", loc)
            self.register_buffer(f"{name}_scale", scale)

    def inputs(self, x: Tensor) -> Tensor:
        """Inputs ``[N, ...]`` in standard units."""
        return (x - self.x_loc) / self.x_scale

    def targets(self, y: Tensor) -> Tensor:
        """Targets ``[N, ...]`` in standard units.

        Raises:
            ValueError: If the standardizer was made without targets.
        """
        loc, scale = self._of_targets()
        return (y - loc) / scale

    def undo(self, prediction: Prediction) -> Prediction:
        """A prediction of standardized targets in the targets' own units, everything in it.

        Raises:
            ValueError: If the standardizer was made without targets, or the prediction is one of classes or of a
                distribution that has no location and scale.
        """
        return prediction.rescaled(*self._of_targets())

    def _of_targets(self) -> tuple[Tensor, Tensor]:
        if self.y_loc is None or self.y_scale is None:
            raise ValueError("y: the standardizer was made without targets; pass them, Standardizer(x, y).")
        return self.y_loc, self.y_scale


def _moments(name: str, values: object) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation: of columns of a table, else of all numbers."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        also = "; classes are not standardized, so leave y out" if name == "y" else ""
        raise TypeError(f"{name}: expected a floating-point tensor [N, ...], got {kind}{also}.")
    if values.dim() == 0 or len(values) < 2:
        raise ValueError(f"{name}: expected at least two rows, got shape {tuple(values.shape)}.")
    known = ~values.isnan() if name == "y" else torch.ones_like(values, dtype=torch.bool)
    if not bool(values[known].isfinite().all()):
        raise ValueError(f"{name}: it holds NaN or infinite numbers; clean or impute the data.")
    dims = (0,) if values.dim() == 2 else tuple(range(values.dim()))
    count = known.sum(dims)
    if bool((count == 0).any()):
        raise ValueError(f"{name}: a column has no number that is not missing; leave it out.")
    wide = values.double().masked_fill(~known, 0.0)
    loc = wide.sum(dims) / count
    variance = ((wide - loc).square() * known).sum(dims) / count
    # Rounding alone gives a constant column a deviation of some units in the last place.
    constant = variance.sqrt() <= 1e-6 * loc.abs()
    return loc.to(values.dtype), torch.where(constant, 1.0, variance.sqrt()).to(values.dtype)
