r"""Priors of structure: relaxed categorical and Bernoulli distributions at a stated temperature.

Declared by the modules of :mod:`pyrobnn.structure` for their own parameters, which keep them under any rule for
weights. As for :class:`~pyrobnn.priors.FixedPrior` the numbers are buffers, and the same distribution object is
returned until one of them changes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.distributions.concrete import BinaryConcrete, Concrete
from pyrobnn.model.priors.base import Prior

__all__ = ["BinaryConcretePrior", "ConcretePrior"]


class _RelaxedPrior(Prior):
    """What both have in common: a temperature and logits."""

    family: ClassVar[type[Concrete] | type[BinaryConcrete]]
    own_dims: ClassVar[int]
    temperature: Tensor
    logits: Tensor

    def __init__(self, shape: torch.Size, temperature: float = 1.0, logits: Tensor | None = None) -> None:
        super().__init__(shape)
        check_positive("temperature", temperature, "temperature of the relaxed prior")
        logits = torch.zeros(()) if logits is None else torch.as_tensor(logits, dtype=torch.get_default_dtype())
        try:
            if not bool(logits.isfinite().all()):
                raise ValueError(f"logits: expected finite log odds, got {logits}.")
            full = logits.detach().broadcast_to(self.shape)
        except RuntimeError:
            raise ValueError(
                f"logits: their shape {tuple(logits.shape)} does not broadcast to that of the choices, "
                f"{tuple(self.shape)}."
            ) from None
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.register_buffer("logits", full.clone())
        self._built: Any = None
        self._built_from: tuple[Tensor, ...] = ()
        self.register_load_state_dict_post_hook(_forget_built)

    def conditional(self, **auxiliary: Tensor) -> Any:
        """The distribution over the whole parameter; the same object until a buffer is replaced."""
        now = (self.temperature, self.logits)
        if self._built is None or not all(a is b for a, b in zip(now, self._built_from, strict=True)):
            built = self.family(self.temperature, self.logits)
            self._built = built.to_event(len(self.shape) - self.own_dims)
            self._built_from = now
        return self._built

    def extra_repr(self) -> str:
        """One line for ``describe``."""
        logits = "uniform" if bool((self.logits == self.logits.reshape(-1)[0]).all()) else "logits"
        return f"{self.family.__name__}({self.temperature.item():.4g}, {logits})"


def _forget_built(prior: Any, _: Any) -> None:
    prior._built = None


@explained
class ConcretePrior(_RelaxedPrior):
    """Relaxed one-hot choices, one for each row of a parameter ``[..., K]``.

    Args:
        shape: The parameter's shape.
        temperature: Temperature of the relaxation; at 1 two choices with equal logits are uniform on the simplex.
        logits: Logits of the choices, broadcast to ``shape``; equal if None.

    Raises:
        ValueError: If ``temperature`` is not positive or the logits do not fit.
    """

    family = Concrete
    own_dims = 1


@explained
class BinaryConcretePrior(_RelaxedPrior):
    """Relaxed choices between 0 and 1, one for each element of a parameter.

    Args:
        shape: The parameter's shape.
        temperature: Temperature of the relaxation.
        logits: Log odds of 1, broadcast to ``shape``; even if None.

    Raises:
        ValueError: If ``temperature`` is not positive or the logits do not fit.
    """

    family = BinaryConcrete
    own_dims = 0
