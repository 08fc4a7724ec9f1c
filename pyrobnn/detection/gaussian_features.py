r"""Mahalanobis distances in feature space: class-conditional Gaussians with one covariance.

.. math::  d_c(x) = (\varphi(x) - \mu_c)^\top \Sigma^{-1} (\varphi(x) - \mu_c), \qquad
           \text{score} = \min_c d_c(x) \quad \text{or} \quad \min_c d_c(x) - d_0(x),

with :math:`\mu_c` the class means, :math:`\Sigma` the covariance within classes, and :math:`d_0` the distance under the
mean and covariance of all data, which takes out what all classes have in common. Means and covariances are updated
batch by batch in double precision (Chan, Golub & LeVeque 1979), so that memory does not grow with the data. A small
multiple of the unit matrix is added, without which features that never vary would have no inverse.

Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks", 2018; Ren et
al., "A simple fix to Mahalanobis distance for improving near-OOD detection", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.detection.base import FORMS, Form
from pyrobnn.detection.feature_base import FeatureDetector, checked_features
from pyrobnn.detection.network_outputs import NetworkOutputs

__all__ = ["ClassMoments", "Mahalanobis", "RelativeMahalanobis"]


class ClassMoments:
    """Class means and the scatter within classes, batch by batch in double precision.

    Attributes:
        count: Rows of each class ``[C]``.
        mean: Class means ``[S, C, F]``.
        scatter: Sum over rows of the products of their deviations from their class's mean, ``[S, F, F]``.
    """

    def __init__(self, num_sets: int, num_classes: int, num_features: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.count = zeros(num_classes)
        self.mean = zeros(num_sets, num_classes, num_features)
        self.scatter = zeros(num_sets, num_features, num_features)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Adds rows ``[S, n, F]`` with labels ``[n]``."""
        x = features.double()
        members = torch.nn.functional.one_hot(labels, len(self.count)).double()  # [n, C]
        count = members.sum(0)
        mean = members.T @ x / count.clamp_min(1.0).unsqueeze(-1)
        deviation = x - mean[:, labels]
        total = self.count + count
        share = count / total.clamp_min(1.0)
        step = mean - self.mean
        between = (self.count * share).unsqueeze(-1) * step  # a class that is new, or not there, adds nothing
        self.scatter += deviation.mT @ deviation + step.mT @ between
        self.mean += share.unsqueeze(-1) * step
        self.count = total

    @property
    def total_mean(self) -> Tensor:
        """The mean of all rows ``[S, F]``."""
        return (self.count.unsqueeze(-1) * self.mean).sum(1) / self.count.sum()

    @property
    def total_scatter(self) -> Tensor:
        """The scatter of all rows around their mean ``[S, F, F]``."""
        step = self.mean - self.total_mean.unsqueeze(1)
        return self.scatter + step.mT @ (self.count.unsqueeze(-1) * step)


@dataclass
class _State:
    moments: ClassMoments | None = None
    first: NetworkOutputs | None = None


@explained
class Mahalanobis(FeatureDetector):
    """The squared Mahalanobis distance to the nearest class mean.

    Args:
        ridge: What is added to the covariance's diagonal, relative to its mean.
        forms: The forms that are fitted.

    Attributes:
        means: Class means ``[S, C, F]``, infinite for classes without training data.
        factor: Lower Cholesky factors of the covariance within classes, ``[S, F, F]``.

    Raises:
        ValueError: If ``ridge`` is not positive, or a form is unknown.
    """

    name = "mahalanobis"
    stored: ClassVar[tuple[str, ...]] = ("means", "factor")
    means: Tensor
    factor: Tensor

    def __init__(self, ridge: float = 1e-6, *, forms: Sequence[Form] = FORMS) -> None:
        super().__init__(*self.stored, forms=forms)
        check_positive("ridge", ridge)
        self.ridge = ridge

    def start(self) -> _State:
        """No rows yet."""
        return _State()

    def add(self, state: _State, outputs: NetworkOutputs) -> None:
        """Adds a batch to the moments; rows with a negative label, which are not observed, are left out."""
        features, labels = self.sets(checked_features(outputs)), outputs.targets
        name = type(self).__name__
        if labels is None:
            raise ValueError(f"outputs: {name} needs the classes of training data; pass a loader of (x, y).")
        if labels.is_floating_point() or labels.shape != features.shape[1:2]:
            raise ValueError(
                f"outputs: {name} needs one integer label for each of {features.shape[1]} rows, got "
                f"{labels.dtype} of shape {tuple(labels.shape)}."
            )
        classes = outputs.logits.shape[-1]
        labels = labels.long()
        if bool((labels >= classes).any()):
            raise ValueError(f"outputs: expected labels below {classes}, got {int(labels.max())}.")
        if state.moments is None:
            state.moments = ClassMoments(len(features), classes, features.shape[-1], features.device)
            state.first = outputs
        state.moments.add(features[:, labels >= 0], labels[labels >= 0])

    def finish(self, state: _State) -> None:
        """Factors the covariances."""
        moments, first = state.moments, state.first
        if moments is None or first is None or not bool(moments.count.any()):
            raise ValueError("outputs: there are no labeled rows to fit to.")
        absent = (moments.count == 0).unsqueeze(-1)
        num_data = int(moments.count.sum())
        self.keep(first, num_data, means=moments.mean.masked_fill(absent, torch.inf), **self.found(moments))

    def found(self, moments: ClassMoments) -> dict[str, Tensor]:
        """What is stored beside the means."""
        return {"factor": self.factored(moments.scatter / moments.count.sum())}

    def factored(self, covariance: Tensor) -> Tensor:
        """Lower Cholesky factors of covariances ``[S, F, F]``, with the ridge."""
        size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        if not bool((size > 0).all()):
            raise ValueError(
                f"outputs: {type(self).__name__} found features that do not vary within classes; take more training "
                "rows, or another layer."
            )
        unit = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        return torch.linalg.cholesky(covariance + (self.ridge * size)[:, None, None] * unit)

    def distance(self, features: Tensor, logits: Tensor, sets: slice) -> Tensor:
        """The squared distance to the nearest class."""
        return self.to_classes(features.double(), sets).amin(-1)

    def to_classes(self, features: Tensor, sets: slice) -> Tensor:
        """Squared distances to all classes ``[s, N, C]``."""
        means = self.means[sets]
        present = means[0, :, 0].isfinite()
        center = means[:, present].mean(1, keepdim=True)  # keeps digits in differences of large numbers
        x, m = (whitened(self.factor[sets], value - center) for value in (features, means[:, present]))
        found = features.new_full((*x.shape[:2], means.shape[1]), torch.inf)
        found[..., present] = torch.cdist(x, m, compute_mode="donot_use_mm_for_euclid_dist").square()
        return found

    def extra_repr(self) -> str:
        """The ridge, and the number of training data."""
        return f"ridge={self.ridge:g}, num_data={int(self.num_data)}"


@explained
class RelativeMahalanobis(Mahalanobis):
    """The squared distance to the nearest class mean, minus that under one Gaussian for all classes.

    Args:
        ridge: What is added to the covariances' diagonals, relative to their means.
        forms: The forms that are fitted.

    Attributes:
        total_mean: The mean of all data ``[S, F]``.
        total_factor: Lower Cholesky factors of their covariance ``[S, F, F]``.

    Raises:
        ValueError: If ``ridge`` is not positive, or a form is unknown.
    """

    name = "relative_mahalanobis"
    stored = (*Mahalanobis.stored, "total_mean", "total_factor")
    total_mean: Tensor
    total_factor: Tensor

    def found(self, moments: ClassMoments) -> dict[str, Tensor]:
        """Both covariances."""
        total = self.factored(moments.total_scatter / moments.count.sum())
        return super().found(moments) | {"total_mean": moments.total_mean, "total_factor": total}

    def distance(self, features: Tensor, logits: Tensor, sets: slice) -> Tensor:
        """The difference of the distances."""
        centered = features.double() - self.total_mean[sets].unsqueeze(1)
        background = whitened(self.total_factor[sets], centered).square().sum(-1)
        return super().distance(features, logits, sets) - background


def whitened(factor: Tensor, rows: Tensor) -> Tensor:
    """``L^{-1} x`` of each row, ``[s, N, F]``."""
    return torch.linalg.solve_triangular(factor, rows.mT, upper=False).mT
