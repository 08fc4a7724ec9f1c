"""Classes by softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int
from pyrobnn.core.explanations import explained
from pyrobnn.distributions.softmax import Softmax, rows_first
from pyrobnn.model.likelihoods.classes import ClassLikelihood
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.model.likelihoods.supports import check_ignore_index, check_labels

__all__ = ["Categorical"]


@explained
class Categorical(ClassLikelihood):
    r"""Classes ``0 … C - 1`` with probabilities softmax(output).

    Args:
        class_dim: Dimension of the output that holds the classes. The default suits ``[B, C]``; use 1 for
            per-pixel logits ``[B, C, H, W]`` with targets ``[B, H, W]``.
        ignore_index: A label that means "not observed", such as the void class of a segmentation. It has log
            probability 0 and no gradient; predictions are made for it as for any other. It masks single pixels; an
            image counts as one row of the data plate however many of its pixels are ignored.
        class_weight: Weights ``[C]`` of the classes in the objective, :math:`c_y \log p(y)`. They change neither the
            number N of data nor predictions. Weights of mean 1 *over the data* leave the balance of likelihood and
            prior as it is.

    Raises:
        TypeError: If ``ignore_index`` is no int.
        ValueError: If ``class_weight`` is no vector of non-negative numbers.
    """

    def __init__(
        self, class_dim: int = -1, *, ignore_index: int | None = None, class_weight: Tensor | list[float] | None = None
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_int("class_dim", class_dim, -math.inf)
        self.class_dim, self.ignore_index = class_dim, ignore_index
        self.register_buffer("class_weight", None if class_weight is None else _checked(class_weight))

    class_weight: Tensor | None

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The unnormalized ``logits``, classes last."""
        self.target_shape(outputs)  # refuses outputs without a class dimension
        return {"logits": self.logits(outputs)}

    def logits(self, outputs: Tensor) -> Tensor:
        """Unnormalized log probabilities ``[B, ..., C]``, classes last: the outputs themselves."""
        return self._classes_last(outputs)

    def distribution(self, parameters: Mapping[str, Tensor]) -> Softmax:
        """Categorical with these ``logits``."""
        return Softmax(parameters["logits"], ignore_index=self.ignore_index)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Categorical with the logits, under which classes count by their weights."""
        logits = self.parameters_of(widened(outputs))["logits"]
        found = Softmax(logits, ignore_index=self.ignore_index, class_weight=self.class_weight)
        return found.to_event(logits.dim() - 2)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log softmax of the logits, classes last."""
        return rows_first(torch.log_softmax, self.logits(outputs))

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        r""":math:`\mathrm{diag}(p) - p p^\top` at each position."""
        if type(self) is not Categorical:  # a subclass may have another density
            return super().fisher_information(outputs)
        probs = self._classes_last(outputs).softmax(-1)
        probs = probs.reshape(len(outputs), -1, probs.shape[-1])
        return FisherInformation(self._positions(outputs), probs, lowered=probs)

    def _positions(self, outputs: Tensor) -> Tensor:
        """Which of a datum's flattened outputs are the classes of which label, ``[T, C]``."""
        positions = torch.arange(outputs[0].numel(), device=outputs.device).reshape(1, *outputs.shape[1:])
        index = self._classes_last(positions)
        return index.reshape(-1, index.shape[-1])

    def _classes_last(self, outputs: Tensor) -> Tensor:
        return outputs if self.class_dim == -1 else outputs.movedim(self.class_dim, -1)

    def observed_mask(self, y: Tensor) -> Tensor | None:
        """True for labels other than ``ignore_index``."""
        return None if self.ignore_index is None else y != self.ignore_index

    @property
    def target_weighting(self) -> str | None:
        """``ignore_index`` or ``class_weight``, if given."""
        if self.ignore_index is not None:
            return "ignore_index"
        return None if self.class_weight is None else "class_weight"

    def target_scale(self, y: Tensor) -> Tensor | None:
        """0 for ``ignore_index``, for other labels the weight of the class, or 1."""
        if type(self) is not Categorical:  # a subclass may have another density
            return super().target_scale(y)
        observed = torch.ones_like(y, dtype=torch.bool) if (mask := self.observed_mask(y)) is None else mask
        if self.class_weight is None:
            return observed.to(torch.get_default_dtype())
        return self.class_weight[torch.where(observed, y, 0)] * observed

    @property
    def is_concave(self) -> bool:
        """Log softmax is concave."""
        return type(self) is Categorical

    def constant_outputs(self, outputs: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """The log frequencies of the classes, over all positions of a datum."""
        if type(self) is not Categorical:  # a subclass may have another density
            return super().constant_outputs(outputs, y, weight)
        classes = self._classes_last(outputs).shape[-1]
        counts = torch.ones_like(y, dtype=torch.float64)
        if weight is not None:
            counts = counts * weight.double().reshape(-1, *[1] * (y.dim() - 1))
        if (mask := self.observed_mask(y)) is not None:
            counts, y = counts[mask], y[mask]
        found = torch.bincount(y.reshape(-1).long(), counts.reshape(-1), classes)
        if self.class_weight is not None:
            found = found * self.class_weight
        logits = (found / found.sum()).clamp_min(1e-6).log() if float(found.sum()) else torch.zeros_like(found)
        return self._classes_last(torch.zeros_like(outputs[:1])).add(logits).movedim(-1, self.class_dim).to(outputs)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The output's shape without the classes."""
        if outputs.dim() < 2:
            raise ValueError(
                f"net: {type(self).__name__} expects outputs [B, C] with a class dimension, got shape "
                f"{tuple(outputs.shape)}."
            )
        shape = self._classes_last(outputs).shape
        if self.class_weight is not None and len(self.class_weight) != shape[-1]:
            raise ValueError(
                f"class_weight: expected a weight for each of the network's {shape[-1]} classes, got "
                f"{len(self.class_weight)}."
            )
        return shape[:-1]

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Integer labels in ``0 … C - 1``, or ``ignore_index``."""
        self.check_shape(outputs, y)
        classes = outputs.shape[self.class_dim]
        check_labels(self, y, classes, self.ignore_index, f"the network has {classes} outputs")

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        weight = None if self.class_weight is None else self.class_weight.tolist()
        return {"class_dim": self.class_dim, "ignore_index": self.ignore_index, "class_weight": weight}


def _checked(class_weight: Tensor | list[float]) -> Tensor:
    weight = torch.as_tensor(class_weight).detach().clone()
    weight = weight if weight.is_floating_point() else weight.to(torch.get_default_dtype())
    if weight.dim() != 1 or not len(weight) or not bool(((weight >= 0) & (weight < math.inf)).all()):
        raise ValueError(f"class_weight: expected a vector [C] of finite weights of at least 0, got {class_weight!r}.")
    return weight
