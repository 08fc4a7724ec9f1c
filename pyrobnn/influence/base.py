r"""The contract of influence functions: how test losses move with the training data.

The posterior or its mode belongs to :math:`\sum_n \omega_n L(z_n) - \log p(\theta)`, in nats for the whole data set,
with :math:`L(z) = -\log p(y \mid x, \theta)` and weights :math:`\omega_n` that are 1 unless the loader gives others.
With H the Hessian of *this sum* at the mode,

.. math::  I_{up}(z_n, z_t) = \frac{dL(z_t)}{d\omega_n} = -\nabla L(z_t)^\top H^{-1} \nabla L(z_n), \qquad
           I_{pert}(z_n, z_t) = \frac{dL(z_t)}{dx_n}
           = -\omega_n \nabla_\theta L(z_t)^\top H^{-1} \nabla_x \nabla_\theta L(z_n).

Removing row n takes :math:`\omega_n` to 0, so the test loss changes by about :math:`-\omega_n I_{up}`. Koh & Liang
(2017) scale the objective by 1/N: their H is N times smaller, their I_up N times larger, and their prediction
:math:`-I_{up}/N` is the same number. The literature also prints I_pert in the form of I_up by mistake.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.gradient_modes import refuse_inference_tensors
from pyrobnn.influence.training_rows import TrainingRows, read_test
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["Influence"]


class Influence(ABC):
    """Influence of training data on test losses; every method is a pure function of the data it is given.

    Args:
        model: The model that was fitted.
        loader: Its training data, in an order that is the same in each pass: row n is column n of every result.
        batch: For loaders that yield something else than ``(x, y)`` or ``(x, y, weight)``, as for
            :func:`pyrobnn.fit`.

    Attributes:
        data: The rows.

    Raises:
        TypeError: If the model is no :class:`~pyrobnn.SupervisedModel`.
        ValueError: If the loader shuffles or has not each of ``num_data`` rows once, or the data are wrong.
    """

    def __init__(self, model: SupervisedModel, loader: Iterable[Any], batch: Reader | None = None) -> None:
        refuse_inference_tensors(model=model)
        self.model = model
        self.data = TrainingRows(model, loader, batch)

    @property
    def num_rows(self) -> int:
        """Number N of training rows."""
        return self.data.rows

    @abstractmethod
    def upweighting(self, x: Any, y: Any) -> Tensor:
        """``I_up [T, N]``: the derivative of each test loss by the weight of each training row.

        Args:
            x: Inputs of T test data.
            y: Their targets.

        Raises:
            TypeError: If the test data are of a wrong kind.
            ValueError: If they do not fit the model.
        """

    @abstractmethod
    def perturbation(self, x: Any, y: Any, rows: Sequence[int]) -> Tensor:
        """``I_pert [T, R, *input shape]``: the derivative of each test loss by the inputs of some training rows.

        Args:
            x: Inputs of T test data.
            y: Their targets.
            rows: Numbers of R training rows.

        Raises:
            TypeError: If inputs are no floating-point tensor, so that there is no derivative.
            ValueError: If there is no such row, or outputs do not depend on the inputs by operations that can be
                differentiated.
        """

    @abstractmethod
    def self_influence(self) -> Tensor:
        """How much the own loss of each training row would rise without it, ``[N]``: ``-ω I_up(z, z)``.

        It is large for rows that only their own presence explains, wrong labels among them.
        """

    def removal(self, x: Any, y: Any, groups: Sequence[Sequence[int]] | Tensor | None = None) -> Tensor:
        """The predicted change of each test loss without training rows: ``[T, N]``, or ``[T, G]`` of groups of them.

        To first order, ``-ω I_up``; a group's is the sum over its rows.

        Args:
            x: Inputs of T test data.
            y: Their targets.
            groups: Lists of row numbers, or a mask ``[G, N]``; None for each row alone.

        Raises:
            TypeError: As for :meth:`upweighting`.
            ValueError: As for :meth:`upweighting`, or if a group is empty, or names a row twice or one that is none.
        """
        listed = None if groups is None else self.data.check_groups(groups)
        found = self.upweighting(x, y)
        change = -found * self.data.weight.to(found)
        return change if listed is None else torch.stack([change[:, group].sum(1) for group in listed], 1)

    def _test(self, x: Any, y: Any) -> Batch:
        return read_test(self.model, x, y)

    def _differentiable(self, rows: Any) -> Batch:
        """Training rows whose inputs have derivatives."""
        batch = self.data.part(self.data.check_rows(rows))
        if not isinstance(batch.inputs, Tensor) or not batch.inputs.is_floating_point():
            kind = str(batch.inputs.dtype) if isinstance(batch.inputs, Tensor) else type(batch.inputs).__name__
            raise TypeError(
                f"loader: its inputs are a {kind}, by which there is no derivative; I_pert needs a floating-point "
                "tensor, such as embeddings in place of their numbers."
            )
        return batch
