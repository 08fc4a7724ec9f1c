"""Base class of likelihoods: from network outputs to the distribution of a target, and to predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.core.pyro_compat import AbstractModuleMeta
from pyrobnn.model.likelihoods.constant import optimized_constant
from pyrobnn.model.likelihoods.information import FisherInformation, sampled_information
from pyrobnn.model.likelihoods.missing import MissingTargets
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.reductions import MomentReduction, Reduction, widened
from pyrobnn.model.stochastic import StochasticModule

__all__ = ["Likelihood"]


class Likelihood(StochasticModule, metaclass=AbstractModuleMeta):  # type: ignore[metaclass]
    """Base class: subclasses implement :meth:`parameters_of` and :meth:`distribution`; the rest has defaults.

    Args:
        missing: Whether targets may be NaN, which means that they were not observed. A missing target has log
            probability 0 and no gradient; predictions are made for it as for any other. Its row still counts in the
            size of the data plate, even if all targets of the row are missing. Needs a :meth:`distribution` without
            event dimensions.

    Attributes:
        missing: The same.
        placeholder: A number in the support; ``log_prob`` is computed there in place of NaN, and then masked.
        learned: What is to be learned while :attr:`untrained`, for messages.
        or_else: What else can be done then but to train it, for messages.

    Raises:
        TypeError: If ``missing`` is no bool.
    """

    placeholder: ClassVar[float] = 0.0
    learned: ClassVar[str] = "parameters"
    or_else: ClassVar[str] = ""

    def __init__(self, *, missing: bool = False) -> None:
        super().__init__()
        if not isinstance(missing, bool):
            raise TypeError(f"missing: expected True if targets may be NaN, else False, got {missing!r}.")
        self.missing = missing

    # --------------------------------------------------------------------------------------- the observation

    @abstractmethod
    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The parameters of the observation's distribution by name, each ``[B, ...]``.

        Each must be a tensor whose first dimension is the inputs; expand what does not depend on the input. No
        ``if`` on tensor values: predictions run this under :func:`torch.func.vmap` over posterior draws.

        Args:
            outputs: The network's outputs ``[B, ...]``.
        """

    @abstractmethod
    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The distribution of targets; its batch shape followed by its event shape is the shape of the targets.

        The default :meth:`reduction` needs its ``mean``, ``variance``, ``log_prob`` and ``sample``. Targets that are
        independent given the parameters are best batch dimensions, as ``missing`` requires; targets that are not (a
        density over vectors) are an event dimension.

        Args:
            parameters: What :meth:`parameters_of` returns, ``[B, ...]``; or that of K draws, stacked, ``[K, B, ...]``.
        """

    def marginal(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The distribution of each target alone, whose batch shape is the shape of the targets.

        Probabilities, quantiles and entropies of predictions are computed from its ``cdf`` and ``log_prob``. The
        default is the :meth:`distribution`, if that has no event dimensions.

        Args:
            parameters: What :meth:`parameters_of` returns, ``[B, ...]``; or that of K draws, stacked, ``[K, B, ...]``.

        Raises:
            NotImplementedError: If it is unknown.
        """
        found = self.distribution(parameters)
        if found.event_shape:
            raise NotImplementedError(f"{type(self).__name__} does not say what distribution each target has alone.")
        return found

    def observation(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The :meth:`distribution`, under which targets that were not observed have log probability 0."""
        found = self.distribution(parameters)
        return MissingTargets(found, self.placeholder) if self.missing else found

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The observation's distribution, batch shape ``[B]``, given the network's outputs ``[B, ...]``.

        Objectives score targets with it, in single precision at least. Where targets are weighted (``class_weight``),
        the weights are applied here and not in predictions.
        """
        self.announce_parameters()
        found = self.observation(self.parameters_of(widened(outputs)))
        return found.to_event(len(found.batch_shape) - 1)

    def expectation(self, outputs: Tensor) -> Tensor:
        """What a single draw predicts ``[B, ...]``: the observation's mean (of classes their probabilities)."""
        return self.distribution(self.parameters_of(outputs)).mean

    @property
    def is_concave(self) -> bool:
        """Whether the log likelihood is known to be a concave function of the outputs."""
        return False

    def constant_outputs(self, outputs: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """The best constant predictor: outputs ``[1, ...]``, the same for every row, with the largest log likelihood.

        The default searches numerically; a closed form is exact. Noise scales of the likelihood stay as they are.

        Args:
            outputs: Outputs of any rows ``[B, ...]``, for their shape.
            y: Targets ``[N, ...]`` of the data.
            weight: Weights of the rows ``[N]``, or None.

        Returns:
            The outputs; None if the search fails.
        """
        return optimized_constant(self, outputs, y, weight)

    # -------------------------------------------------------------------------------------------- prediction

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> Reduction:
        """The object that reduces the outputs under K posterior draws to a :class:`Prediction`.

        The default pools the means and variances of :meth:`distribution` and keeps its parameters, which
        ``log_prob``, ``sample`` and ``interval`` of the prediction need.

        Args:
            num_samples: Number K of draws to come.
            keep: Keep the parameters of each draw, whatever their size.
            max_bytes: Memory budget; parameters of a quarter of it or less are kept even if ``keep`` is False.
        """
        return MomentReduction(self, num_samples, keep=keep, max_bytes=max_bytes)

    @property
    def has_closed_form(self) -> bool:
        """Whether :meth:`closed_form` gives a prediction."""
        return type(self).closed_form is not Likelihood.closed_form

    def closed_form(self, outputs: Tensor, covariance: Tensor, num_samples: int) -> Prediction | None:
        """The predictive under Gaussian network outputs, or None if it has no closed form.

        Args:
            outputs: Means of the outputs ``[B, ...]``.
            covariance: Covariances of each input's ``O`` outputs, flattened, ``[B, O, O]``.
            num_samples: Number of targets that the prediction's ``sample`` draws.
        """
        return None

    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """The information of an observation in the outputs ``[B, ...]``, without gradients; curvature is made of it.

        The default averages over scores of targets drawn from the :meth:`distribution`. A closed form is exact and
        faster; if it is inherited by a class with another density it must not apply there.
        """
        return sampled_information(self, outputs)

    def rescaled(self, parameters: Mapping[str, Tensor], loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """The parameters of the distribution of ``loc + scale · y``; by default with ``loc`` and ``scale``.

        Raises:
            ValueError: If the parameters are not ``loc`` and ``scale``.
        """
        if set(parameters) != {"loc", "scale"}:
            raise ValueError(
                f"likelihood: the targets of {type(self).__name__} have no location and scale, so that their "
                "predictions cannot be given in other units; fit the targets as they are."
            )
        return {"loc": loc + scale * parameters["loc"], "scale": scale * parameters["scale"]}

    def notice(self, parameters: Mapping[str, Tensor]) -> None:
        """Looks at the parameters of ``k`` draws ``[k, N, ...]`` that enter a prediction, and may warn; once."""

    # ----------------------------------------------------------------------------------------------- targets

    def observed_mask(self, y: Tensor) -> Tensor | None:
        """Mask of the shape of ``y``, true where a target was observed; None if all targets must be."""
        return ~y.isnan() if self.missing else None

    @property
    def target_weighting(self) -> str | None:
        """Name of the argument that masks or weights targets by their values, None if there is none.

        Fisher information and Gauss-Newton matrices (:mod:`pyrobnn.curvature`) are computed from the outputs alone, so
        they refuse such likelihoods, unless they have the targets and :meth:`target_scale` says how each counts.
        """
        return "missing" if self.missing else None

    def target_scale(self, y: Tensor) -> Tensor | None:
        """Factors of the log likelihoods of targets, of the shape of ``y``: 0 for what is masked, or class weights.

        They belong to the blocks of :meth:`fisher_information`, in order. None if curvature cannot take them.
        """
        return None

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The shape that targets must have for ``outputs``.

        The default asks the :meth:`distribution`, which each call of the model then makes twice; a formula is faster.
        """
        found = self.distribution(self.parameters_of(outputs))
        return found.batch_shape + found.event_shape

    def check_shape(self, outputs: Tensor, y: Tensor) -> None:
        """Refuses targets of a shape that would silently broadcast to a wrong loss.

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
        if not y.is_floating_point() or not bool(self.observed_values(y).isfinite().all()):
            self.refuse_targets(y, "finite floating-point targets", floating=True)

    def initialize(self, targets: Tensor) -> None:
        """Starts parameters that are learned, and were neither stated nor trained, at the scale of the targets.

        :func:`pyrobnn.fit` calls it with the targets ``[B, ...]`` of a batch before the first step on it. The default
        does nothing.
        """

    @property
    def untrained(self) -> bool:
        """Whether a parameter is to be learned, and was neither stated nor moved since the likelihood was made."""
        return False

    def observed_values(self, y: Tensor) -> Tensor:
        """The targets that were observed, as a vector if there is a mask."""
        mask = self.observed_mask(y)
        return y if mask is None else y[mask]

    def refuse_targets(self, y: Tensor, expected: str, *, floating: bool, wrong: Tensor | None = None) -> None:
        """Raises an error that states what was expected and what was given.

        Args:
            y: The targets.
            expected: Description of valid targets.
            floating: Whether they are floating-point numbers; otherwise they are integers.
            wrong: Mask of the targets that do not fit, whose rows are counted.

        Raises:
            TypeError: If the dtype is wrong.
            ValueError: If the dtype is right, so that the values are wrong.
        """
        is_integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        right_kind = y.is_floating_point() if floating else is_integer
        kind = ValueError if right_kind else TypeError
        detail = f"dtype {y.dtype}"
        values = self.observed_values(y) if right_kind else y
        if values.numel() and not y.is_complex():
            detail += f" with values from {values.min().item():.4g} to {values.max().item():.4g}"
        if wrong is not None and y.dim():
            rows = wrong.reshape(len(y), -1).any(1)
            detail += f"; {int(rows.sum())} of {len(y)} rows do not fit, row {int(rows.int().argmax())} first"
        also = " (or NaN, where missing)" if self.missing else ""
        raise kind(f"y: {type(self).__name__} expects {expected}{also}, got {detail}.")

    def config(self) -> dict[str, Any]:
        """JSON-able constructor arguments; tensors and latent sites are saved with the state."""
        return {"missing": self.missing}
