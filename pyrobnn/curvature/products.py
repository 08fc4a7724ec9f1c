r"""Products of vectors with the curvature of minus the log joint density, without the matrix.

.. math::  H = -\nabla^2 \Big[ \sum_n \omega_n \log p(y_n \mid w) + \log p(w) \Big] \qquad\text{or}\qquad
           G = \sum_n \omega_n J_n^\top \Lambda_n J_n - \nabla^2 \log p(w),

with :math:`\Lambda_n` the Hessian of :math:`-\log p(y_n \mid f)` in the outputs. Several vectors share one graph of
each batch (Pearlmutter 1994; Schraudolph 2002). G has no negative eigenvalue where the likelihood is log-concave in the
outputs and the prior in the weights; H may have some anywhere but at a maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from pyrobnn.core.attention import attention_under_vmap
from pyrobnn.core.batches import Batch
from pyrobnn.core.finite import weighted
from pyrobnn.curvature.log_joint import LogJoint, pulled_back, second_derivatives
from pyrobnn.model.substitution import SubstituteMessenger, unscaled_score
from pyrobnn.model.supervised import SupervisedModel

if TYPE_CHECKING:
    from pyrobnn.model.layout import Site

__all__ = ["CurvatureProducts", "Matrix"]

Matrix = Literal["hessian", "gauss_newton"]


class CurvatureProducts:
    """``H V`` or ``G V`` over batches that are kept.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites.
        sites: The sites that vectors are about.
        batches: The whole data set.
        matrix: ``"hessian"`` or ``"gauss_newton"``.

    Attributes:
        size: Length n of vectors.
        num_batches: Number of batches.

    Raises:
        ValueError: If ``matrix`` is unknown.
    """

    def __init__(
        self,
        model: SupervisedModel,
        values: Mapping[str, Tensor],
        sites: Sequence[Site],
        batches: Sequence[Batch],
        matrix: Matrix = "hessian",
    ) -> None:
        if matrix not in get_args(Matrix):
            raise ValueError(f"matrix: expected one of {', '.join(map(repr, get_args(Matrix)))}, got {matrix!r}.")
        self.model, self.values, self.batches, self.matrix = model, values, list(batches), matrix
        self.log_joint = LogJoint(model, values, sites)
        self.size, self.num_batches = len(self.log_joint.point), len(self.batches)
        self.rows = sum(batch.rows for batch in self.batches)

    def gradient(self) -> Tensor:
        """The gradient ``[n]`` of minus the log joint density, in double precision; 0 at a maximum."""
        return -self.log_joint.value_and_gradient(self.log_joint.point, self.batches)[1]

    def __call__(self, vectors: Tensor, batch: int | None = None) -> Tensor:
        """Products ``[R, n]`` of vectors ``[R, n]``, in double precision.

        Args:
            vectors: The vectors.
            batch: The batch from which the data's part is estimated, scaled to all rows; None for all batches.
        """
        rows = vectors.to(self.log_joint.point)
        if batch is not None:
            own = self.batches[batch]
            return self._of_batch(own, rows, self.rows / own.rows, with_prior=True)
        parts = (self._of_batch(own, rows, 1.0, index == 0) for index, own in enumerate(self.batches))
        return sum(parts, torch.zeros_like(rows, dtype=torch.float64))

    def _of_batch(self, batch: Batch, vectors: Tensor, scale: float, with_prior: bool) -> Tensor:
        with torch.enable_grad(), attention_under_vmap(vectors.device):  # the fused one has no second derivative
            leaf = self.log_joint.point.clone().requires_grad_()
            if self.matrix == "hessian":
                scores = self.log_joint.scores(leaf, batch)
                total = scale * scores.likelihood + (scores.prior if with_prior else 0.0)
                return -second_derivatives(total, leaf, vectors).double()
            found = scale * self._gauss_newton(leaf, batch, vectors).double()
            if with_prior:
                with SubstituteMessenger(self.log_joint.moved(leaf)) as run:
                    self.model.sample_latents()
                prior = torch.stack([unscaled_score(message).sum() for message in run.latent]).sum()
                found -= second_derivatives(prior, leaf, vectors).double()
        return found

    def _gauss_newton(self, leaf: Tensor, batch: Batch, vectors: Tensor) -> Tensor:
        """``Jᵀ Λ J V``: J v is the derivative of ``Jᵀ u`` by u, for networks without derivatives in forward mode."""
        with SubstituteMessenger(self.log_joint.moved(leaf)):
            outputs = self.model.predictive(batch.inputs)
            seen = outputs.detach().requires_grad_()
            log_prob = self.model.likelihood(seen).log_prob(batch.targets)
        loss = -weighted(log_prob, batch.weight).sum()
        (slope,) = torch.autograd.grad(loss, seen, create_graph=True)
        dual = torch.zeros_like(outputs, requires_grad=True)
        (pulled,) = torch.autograd.grad(outputs, leaf, dual, create_graph=True)
        changes = pulled_back(pulled, dual, vectors)
        bent = pulled_back(slope, seen, changes) if slope.requires_grad else torch.zeros_like(changes)
        return pulled_back(outputs, leaf, bent)
