"""DualActivation: what the limit of a network asks of an activation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["DualActivation"]


class DualActivation(ABC):
    """Second moments of an activation and of its derivative; ``c``, ``a`` and ``b`` are broadcast together.

    One of your own is passed as ``activations={MyModule: MyDual()}`` to :func:`pyrobnn.function_space.kernel`.
    """

    @abstractmethod
    def product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``E[φ(u) φ(v)]`` for covariance ``c`` and variances ``a``, ``b``."""

    @abstractmethod
    def derivative_product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``E[φ'(u) φ'(v)]``."""

    def square(self, a: Tensor) -> Tensor:
        """``E[φ(u)²]``."""
        return self.product(a, a, a)

    def derivative_square(self, a: Tensor) -> Tensor:
        """``E[φ'(u)²]``."""
        return self.derivative_product(a, a, a)
