r"""How well a network and its training fit labels that are noise: an estimate of the empirical Rademacher complexity.

.. math::  \hat R_n = E_\sigma \sup_{h} \frac1n \sum_{i=1}^n \sigma_i h(x_i), \qquad \sigma_i = \pm 1 \text{ at random.}

For predictors with values ±1 the sum is twice the accuracy on the random labels minus one, and a fit stands for the
supremum, which it does not exceed: the estimate is a lower one. With C classes it is :math:`(C a - 1) / (C - 1)` of the
accuracy a, 0 at chance and 1 for a perfect fit. A network that fits every labelling has the complexity 1, which bounds
that hold for all its weights cannot use; on new rows its accuracy is that of chance.

Bartlett & Mendelson, *Rademacher and Gaussian complexities* (2002); Zhang, Bengio, Hardt, Recht & Vinyals,
*Understanding deep learning requires rethinking generalization* (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics._draws import at_draw, undisturbed
from pyrobnn.diagnostics.generalization.lipschitz import check_inputs
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.declarations import declared_likelihood
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.prediction import predict
from pyrobnn.prediction.runners import model_outputs
from pyrobnn.training import fit

__all__ = ["Build", "RandomLabelFit", "built", "random_label_fit"]

Build = Callable[[], tuple[nn.Module, Guide]]
"""Makes a new model of all rows, and a guide for it."""


@dataclass(frozen=True, eq=False)
class RandomLabelFit:
    """Accuracies on labels at random, for R repetitions.

    Attributes:
        accuracies: On the rows that were fitted ``[R]``.
        test_accuracies: On other rows with their true labels ``[R]``; None without them.
        num_classes: Number C of classes.
        num_data: Rows n that were fitted.
    """

    accuracies: Tensor
    test_accuracies: Tensor | None
    num_classes: int
    num_data: int

    @property
    def complexities(self) -> Tensor:
        """``(C a - 1) / (C - 1)`` of each repetition ``[R]``."""
        return (self.num_classes * self.accuracies - 1.0) / (self.num_classes - 1.0)

    @property
    def estimate(self) -> float:
        """Their mean: the empirical Rademacher complexity (C = 2), from below."""
        return float(self.complexities.mean())

    @property
    def standard_error(self) -> float:
        """Its standard error over the labellings; NaN for a single one."""
        return float(self.complexities.std()) / len(self.accuracies) ** 0.5 if len(self.accuracies) > 1 else math.nan

    def __str__(self) -> str:
        said = (
            f"random labels of {self.num_data} rows, {self.num_classes} classes: complexity {self.estimate:.3f} ± "
            f"{self.standard_error:.2g}, accuracy {float(self.accuracies.mean()):.3f}"
        )
        if self.test_accuracies is None:
            return said
        return f"{said}; on other rows {float(self.test_accuracies.mean()):.3f}, by chance {1 / self.num_classes:.3f}"


@explained
def random_label_fit(
    build: Build,
    x: Tensor,
    *,
    num_classes: int = 2,
    repetitions: int = 3,
    test: tuple[Tensor, Tensor] | None = None,
    batch_size: int = 100,
    num_samples: int = 10,
    seed: int | None = None,
    **options: Any,
) -> RandomLabelFit:
    """Fits labels at random, several times from the start.

    Args:
        build: A function without arguments that makes a new ``(model, guide)``, the model with a likelihood of classes
            and ``num_data=len(x)``.
        x: The rows ``[n, ...]``.
        num_classes: Number C of classes that labels are drawn from; 2 for signs.
        repetitions: Number R of labellings.
        test: Other rows and their true labels.
        batch_size: Rows of a training batch.
        num_samples: Draws that a prediction is the mean of.
        seed: Fixes labels, batches and fits.
        **options: Of :func:`pyrobnn.fit`, such as ``epochs`` and ``lr``.

    Returns:
        Accuracies by repetition, the estimate and its standard error.

    Raises:
        TypeError: If ``build`` does not make a model and a guide, or the likelihood is not one of classes.
        ValueError: If a number is out of range, there are no rows, or ``fit`` refuses something.
    """
    if not callable(build):
        raise TypeError(f"build: expected a function that makes (model, guide), got {type(build).__name__}.")
    check_inputs(x)
    check_int("num_classes", num_classes, 2)
    for name, count in (("repetitions", repetitions), ("batch_size", batch_size), ("num_samples", num_samples)):
        check_positive_int(name, count)
    if test is not None:
        _check_test(test)
    found, others = [], []
    with random_state.local(seed):
        for _ in range(repetitions):
            model, guide = built(build)
            labels = torch.randint(num_classes, (len(x),), device=x.device)
            data = TensorDataset(x, targets_like(model, guide, x, labels))
            loader = DataLoader(data, batch_size=min(batch_size, len(x)), shuffle=True)
            fit(model, guide, loader, **{"progress": False} | options)
            found.append(_accuracy(model, guide, x, labels, num_samples))
            if test is not None:
                others.append(_accuracy(model, guide, *test, num_samples))
    tests = torch.tensor(others, dtype=torch.float64) if others else None
    return RandomLabelFit(torch.tensor(found, dtype=torch.float64), tests, num_classes, len(x))


def built(build: Callable[..., Any], *arguments: Any) -> tuple[Any, Guide]:
    """What a constructor makes, checked.

    Raises:
        TypeError: If that is no model with a guide.
    """
    made = build(*arguments)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise TypeError(f"build: expected it to return (model, guide), got {type(made).__name__}.")
    check_guide(*made, argument="build")
    return made


def targets_like(model: Any, guide: Guide, x: Tensor, labels: Tensor) -> Tensor:
    """Labels ``[n]`` in the form that the model's likelihood takes.

    Raises:
        TypeError: If the likelihood is not one of classes.
        ValueError: If an output has several labels.
    """
    likelihood = declared_likelihood(model)
    if not isinstance(likelihood, ClassLikelihood):
        raise TypeError(
            f"build: random labels need a likelihood of classes, such as likelihoods.Categorical, but the model's is "
            f"{type(likelihood).__name__}."
        )
    with undisturbed(model), at_draw(model, Draws.of(guide.sample(1)).at(0)):
        drawn = likelihood(model_outputs(model, x[:2])).sample()
    if drawn[0].numel() != 1:
        raise ValueError(
            f"build: expected one label for each row, but the model's have the shape {list(drawn.shape[1:])}."
        )
    return labels.reshape(len(labels), *drawn.shape[1:]).to(drawn.dtype)


def _accuracy(model: Any, guide: Guide, x: Tensor, labels: Tensor, num_samples: int) -> float:
    predicted = predict(model, guide, x, num_samples).predicted
    return float((predicted.reshape(len(labels), -1) == labels.reshape(len(labels), -1)).double().mean())


def _check_test(test: Any) -> None:
    if not (isinstance(test, tuple) and len(test) == 2 and all(isinstance(part, Tensor) for part in test)):
        raise TypeError(f"test: expected (inputs, labels), got {type(test).__name__}.")
    if not len(test[0]) or len(test[0]) != len(test[1]):
        raise ValueError(f"test: expected as many labels as inputs, at least one, got {len(test[1])}, {len(test[0])}.")
