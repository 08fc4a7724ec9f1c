r"""Double descent: the test error over the number of parameters, which peaks where they are as many as the data.

With P random features :math:`\phi(x) = \max(0, x W + b) / \sqrt P` and least squares of minimal norm,
:math:`a = \Phi^+ y` (by singular values, in double precision), the training error reaches 0 at P = n. There the
smallest singular value is next to 0, so that the solution fits noise with a huge norm and the test error peaks; beyond,
the norm falls again and so does the error. Ridge and early stopping hide the peak.

Belkin, Hsu, Ma & Mandal, *Reconciling modern machine-learning practice and the bias-variance trade-off* (2019);
Nakkiran et al., *Deep double descent* (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_non_negative, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics.generalization.lipschitz import check_inputs
from pyrobnn.diagnostics.generalization.random_labels import built
from pyrobnn.guides.base import Guide
from pyrobnn.model.declarations import declared_likelihood
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.prediction import predict
from pyrobnn.training import fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DoubleDescent", "network_sweep", "random_feature_sweep"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class DoubleDescent:
    """Errors by width, for V widths and R repetitions.

    Attributes:
        widths: The widths, ascending.
        num_parameters: Parameters P of the model of each width.
        train_error: Error on the rows that were fitted ``[V, R]``: squared, or the share of wrong classes.
        test_error: That on other rows ``[V, R]``.
        num_data: Numbers that the data determine: n rows, for networks times the outputs.
    """

    widths: tuple[int, ...]
    num_parameters: tuple[int, ...]
    train_error: Tensor
    test_error: Tensor
    num_data: int

    @property
    def peak(self) -> int:
        """Position of the largest median test error."""
        return int(self.test_error.median(1).values.argmax())

    @property
    def peak_ratios(self) -> tuple[float, float]:
        """The peak's median test error relative to that of the smallest and that of the largest model."""
        medians = self.test_error.median(1).values
        return float(medians[self.peak] / medians[0]), float(medians[self.peak] / medians[-1])

    def __str__(self) -> str:
        """A table, with medians over the repetitions."""
        train, test = (error.median(1).values.tolist() for error in (self.train_error, self.test_error))
        lines = [f"{'width':>8} {'P':>9} {'P/n':>7} {'training':>10} {'test':>10}"]
        for width, size, a, b in zip(self.widths, self.num_parameters, train, test, strict=True):
            lines.append(f"{width:>8} {size:>9} {size / self.num_data:>7.2f} {a:>10.4g} {b:>10.4g}")
        return "\n".join(lines)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """:func:`pyrobnn.plots.double_descent`."""
        from pyrobnn.reporting import plots  # which loads matplotlib

        return plots.double_descent(self, ax=ax)


@explained
def random_feature_sweep(
    train: Pair, test: Pair, widths: Sequence[int], *, ridge: float = 0.0, repetitions: int = 5, seed: int | None = None
) -> DoubleDescent:
    """Least squares on random ReLU features, by width, in closed form.

    Args:
        train: Inputs ``[n, ...]``, which are flattened, and targets ``[n]`` or ``[n, O]``; classes one-hot, say. Inputs
            of unit scale: with smaller ones most features are on or off for all rows, and count for less than P.
        test: Other rows, for the error.
        widths: Numbers of features, each at least 1.
        ridge: Squared norm of the solution times this is added to the sum of squares; 0 for the solution of least norm.
        repetitions: Draws R of the features.
        seed: Fixes them.

    Returns:
        Mean squared errors by width; P is the width, and n the number of rows.

    Raises:
        TypeError: If data are no floating-point tensors.
        ValueError: If a width or another number is out of range, or data do not fit each other.
    """
    widths = _checked_widths(widths)
    check_positive_int("repetitions", repetitions)
    check_non_negative("ridge", ridge)
    x, y = _flat("train", train)
    x_test, y_test = _flat("test", test)
    if x.shape[1] != x_test.shape[1] or y.shape[1] != y_test.shape[1]:
        raise ValueError(
            f"test: expected {x.shape[1]} inputs and {y.shape[1]} targets as in train, got {x_test.shape[1]} and "
            f"{y_test.shape[1]}."
        )
    errors = []
    with random_state.local(seed):
        for width in widths:
            found = []
            for _ in range(repetitions):
                weight = torch.randn(x.shape[1], width, dtype=x.dtype).to(x) / x.shape[1] ** 0.5
                bias = torch.randn(width, dtype=x.dtype).to(x)
                features, others = (torch.relu(rows @ weight + bias) / width**0.5 for rows in (x, x_test))
                solution = _least_squares(features, y, ridge)
                pairs = ((features, y), (others, y_test))
                found.append([float((f @ solution - t).square().mean()) for f, t in pairs])
            errors.append(found)
    table = torch.tensor(errors, dtype=torch.float64)
    return DoubleDescent(widths, widths, table[..., 0], table[..., 1], len(x))


@explained
def network_sweep(
    build: Callable[[int], tuple[nn.Module, Guide]],
    train: Pair,
    test: Pair,
    widths: Sequence[int],
    *,
    repetitions: int = 3,
    batch_size: int = 100,
    num_samples: int = 10,
    seed: int | None = None,
    **options: Any,
) -> DoubleDescent:
    """Networks of several widths, trained by :func:`pyrobnn.fit`.

    Args:
        build: From a width to a new ``(model, guide)``.
        train: Inputs and targets, as the model takes them.
        test: Other rows, for the error.
        widths: The widths, each at least 1.
        repetitions: Fits R of each.
        batch_size: Rows of a training batch.
        num_samples: Draws that a prediction is the mean of.
        seed: Fixes starts, batches and draws.
        **options: Of :func:`pyrobnn.fit`, such as ``epochs``: training must go on until the data are fitted.

    Returns:
        Errors by width: the share of wrong classes, or mean squares. P is the number of random weights, and n that of
        the rows times the outputs that are free (C - 1 for C classes).

    Raises:
        TypeError: If ``build`` does not make a model and a guide, or data are no tensors.
        ValueError: If a number is out of range, or ``fit`` refuses something.
    """
    if not callable(build):
        raise TypeError(f"build: expected a function from a width to (model, guide), got {type(build).__name__}.")
    widths = _checked_widths(widths)
    for name, count in (("repetitions", repetitions), ("batch_size", batch_size), ("num_samples", num_samples)):
        check_positive_int(name, count)
    _check_pair("train", train)
    _check_pair("test", test)
    errors, sizes, outputs = [], [], 1
    with random_state.local(seed):
        for width in widths:
            found = []
            for _ in range(repetitions):
                model, guide = built(build, width)
                loader = DataLoader(TensorDataset(*train), batch_size=min(batch_size, len(train[0])), shuffle=True)
                fit(model, guide, loader, **{"progress": False} | options)
                scores = [_error(model, guide, *rows, num_samples) for rows in (train, test)]
                found.append([score for score, _ in scores])
                outputs = scores[0][1]
            sizes.append(guide.layout.size)
            errors.append(found)
    table = torch.tensor(errors, dtype=torch.float64)
    return DoubleDescent(widths, tuple(sizes), table[..., 0], table[..., 1], len(train[0]) * outputs)


def _error(model: Any, guide: Guide, x: Tensor, y: Tensor, num_samples: int) -> tuple[float, int]:
    """The error of predictions, and the number of free outputs."""
    prediction = predict(model, guide, x, num_samples)
    if isinstance(declared_likelihood(model), ClassLikelihood):
        wrong = prediction.predicted.reshape(y.shape) != y
        return float(wrong.double().mean()), prediction.mean.shape[-1] - 1
    return float((prediction.mean.reshape(y.shape) - y).square().mean()), y[0].numel()


def _least_squares(features: Tensor, y: Tensor, ridge: float) -> Tensor:
    """The solution of least norm, or with a ridge, by singular values."""
    u, s, vh = torch.linalg.svd(features, full_matrices=False)
    cutoff = s[0] * max(features.shape) * torch.finfo(s.dtype).eps
    inverse = torch.where(s > cutoff, s / (s.square() + ridge), 0.0)
    return vh.mT @ (inverse[:, None] * (u.mT @ y))


def _checked_widths(widths: Any) -> tuple[int, ...]:
    if not isinstance(widths, list | tuple | range) or not len(widths):
        raise ValueError(f"widths: expected several widths, such as [10, 100, 1000], got {widths!r}.")
    for width in widths:
        check_positive_int("widths", width)
    if list(widths) != sorted(set(widths)):
        raise ValueError(f"widths: expected them ascending, each once, got {list(widths)}.")
    return tuple(widths)


def _check_pair(name: str, pair: Any) -> None:
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        raise TypeError(f"{name}: expected (inputs, targets), two tensors, got {type(pair).__name__}.")
    x, y = pair
    if not (x.dim() and y.dim() and len(x)) or len(x) != len(y):
        raise ValueError(
            f"{name}: expected as many targets as inputs, at least one, got shapes {list(y.shape)} and {list(x.shape)}."
        )


def _flat(name: str, pair: Any) -> Pair:
    """Inputs ``[n, d]`` and targets ``[n, O]`` in double precision."""
    _check_pair(name, pair)
    x, y = pair[0].reshape(len(pair[0]), -1), pair[1].reshape(len(pair[1]), -1)
    if not y.is_floating_point():
        raise TypeError(f"{name}: expected floating-point targets (classes one-hot), got {y.dtype}.")
    check_inputs(x)
    return x.double(), y.double()
