"""What a likelihood is: parameters, their distribution, a reduction, and which targets it takes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.core.pyro_compat import AbstractModuleMeta
from pyrobnn.model.likelihoods.missing import MissingTargets
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.reductions import MomentReduction, Reduction
from pyrobnn.model.stochastic import StochasticModule

__all__ = ["Likelihood"]


class Likelihood(StochasticModule, metaclass=AbstractModuleMeta):  # type: ignore[metaclass]
    """Base class: subclasses implement :meth:`parameters_of` and :meth:`distribution`; the rest has defaults.

    Args:
        missing: Whether targets may be NaN, for what was not observed. A missing target has log probability 0 and no
            gradient; predictions are made for it as for any other. It stays in the plate, so rows count as ever,
            however many of their targets are missing.

    Attributes:
        missing: The same.
        placeholder: A target in the support, with which the distribution is asked in the place of a missing one.

    Raises:
        TypeError: If ``missing`` is no bool.
    """

    placeholder: ClassVar[float] = 0.0

    def __init__(self, *, missing: bool = False) -> None:
        super().__init__()
        if not isinstance(missing, bool):
            raise TypeError(f"missing: expected True if targets may be NaN, else False, got {missing!r}.")
        self.missing = missing

    # --------------------------------------------------------------------------------------- the observation

    @abstractmethod
    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The parameters of the observation's distribution by name, each ``[B, ...]``.

        They must be tensors with the inputs first and no Python decisions about values: this runs under
        :func:`torch.func.vmap`, one posterior draw each. What does not depend on the input is expanded.

        Args:
            outputs: The network's outputs ``[B, ...]``.
        """

    @abstractmethod
    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The distribution of single targets: batch (and event) shape together are those of the targets.

        Args:
            parameters: Those of :meth:`parameters_of`, ``[B, ...]``, or of K draws, ``[K, B, ...]``.
        """

    def observation(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """:meth:`distribution` as predictions score targets: those that are no observation have log probability 0."""
        found = self.distribution(parameters)
        return MissingTargets(found, self.placeholder) if self.missing else found

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The observation's distribution, batch shape ``[B]``, given the network's outputs ``[B, ...]``.

        It is what the objective scores: weights of targets count here, and in no prediction.
        """
        self.announce_parameters()
        found = self.observation(self.parameters_of(outputs))
        return found.to_event(len(found.batch_shape) - 1)

    def expectation(self, outputs: Tensor) -> Tensor:
        """What a single draw predicts ``[B, ...]``: the observation's mean (of classes their probabilities)."""
        return self.distribution(self.parameters_of(outputs)).mean

    # -------------------------------------------------------------------------------------------- prediction

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> Reduction:
        """How what posterior draws predict is reduced, and to which prediction.

        The default pools the means and variances of :meth:`distribution` and keeps its parameters, which
        ``log_prob``, ``sample`` and ``interval`` of the prediction need.

        Args:
            num_samples: Number K of draws to come.
            keep: Keep what each draw predicts, whatever its size.
            max_bytes: Budget; what is useful to keep is kept anyway below a quarter of it.
        """
        return MomentReduction(self, num_samples, keep=keep, max_bytes=max_bytes)

    def closed_form(self, outputs: Tensor, covariance: Tensor, num_samples: int) -> Prediction | None:
        """The predictive under Gaussian network outputs, or None if it has no closed form.

        Args:
            outputs: Means of the outputs ``[B, ...]``.
            covariance: Covariances of each input's ``O`` outputs, flattened, ``[B, O, O]``.
            num_samples: Number of targets that the prediction's ``sample`` draws.
        """
        return None

    # ----------------------------------------------------------------------------------------------- targets

    def observed(self, y: Tensor) -> Tensor | None:
        """Which targets are observations, a mask of the shape of ``y``; None if all of them must be."""
        return ~y.isnan() if self.missing else None

    @property
    def uneven(self) -> str | None:
        """The argument by which some targets count otherwise than others, or None.

        What the outputs' information is then depends on targets, which curvature does not know.
        """
        return "missing" if self.missing else None

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The shape that targets must have for ``outputs``."""
        return outputs.shape

    def check_shape(self, outputs: Tensor, y: Tensor) -> None:
        """Refuses targets that would broadcast into a wrong loss without a word.

        Raises:
            TypeError: If ``y`` is no tensor.
            ValueError: If its shape is not :meth:`target_shape`.
        """
        if not isinstance(y, Tensor):
            raise TypeError(f"y: expected a tensor of targets, got {type(y).__name__}.")
        expected = self.target_shape(outputs)
        if y.shape != expected:
            raise ValueError(
                f"y: {type(self).__name__} expects targets of shape {tuple(expected)} for network outputs of shape "
                f"{tuple(outputs.shape)}, got {tuple(y.shape)}; reshape y, or the network's output."
            )

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Checks shape, dtype and range of targets; done by :func:`pyrobnn.fit` during the first epoch.

        Raises:
            TypeError: If the dtype of ``y`` is wrong.
            ValueError: If its shape or a value is.
        """
        self.check_shape(outputs, y)
        if not y.is_floating_point() or not bool(self.known(y).isfinite().all()):
            self.refuse_targets(y, "finite floating-point targets")

    def known(self, y: Tensor) -> Tensor:
        """Those targets that are observations, flattened if some are not."""
        observed = self.observed(y)
        return y if observed is None else y[observed]

    def refuse_targets(self, y: Tensor, expected: str) -> None:
        """Says what was expected and what came.

        Args:
            y: The targets.
            expected: What they should be; with the word "floating" if their dtype should be.

        Raises:
            TypeError: If the dtype is the fault.
            ValueError: If the values are.
        """
        is_integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        right_kind = y.is_floating_point() if "floating" in expected else is_integer
        kind = ValueError if right_kind else TypeError
        detail = f"dtype {y.dtype}"
        known = self.known(y) if right_kind else y
        if known.numel() and not y.is_complex():
            detail += f" with values from {known.min().item():.4g} to {known.max().item():.4g}"
        also = " (or NaN, where missing)" if self.missing else ""
        raise kind(f"y: {type(self).__name__} expects {expected}{also}, got {detail}.")

    def config(self) -> dict[str, Any]:
        """JSON-able constructor arguments; tensors and latent sites are saved with the state."""
        return {"missing": self.missing}
