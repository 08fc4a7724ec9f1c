r"""Virtual-logit matching (ViM): what is left of a feature outside the principal space, beside the energy.

.. math::  \text{score} = \alpha \| R^\top (\varphi(x) - u) \| - \log \sum_c e^{s_c(x)}, \qquad u = -W^+ b,

with R the directions of least second moment of :math:`\varphi - u` over training data, W and b the last layer's weights
and bias, and :math:`\alpha` such that over training data the virtual logit has the mean of the largest one.

Wang et al., "ViM: Out-of-distribution with virtual-logit matching", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.detection.base import FORMS, Form
from pyrobnn.detection.feature_base import KeptFeatures
from pyrobnn.detection.network_outputs import NetworkOutputs

__all__ = ["ViM"]


@explained
class ViM(KeptFeatures):
    """The virtual logit minus the log of the sum of the exponentials of the others.

    The averaged form takes the mean features, weights and outputs over draws.

    Args:
        dim: Dimension of the principal space; None: 1,000 of 2,048 features or more, 512 of 768 or more, else half of
            them, as in the paper.
        forms: The forms that are fitted.
        max_bytes: Most that training features may take during the fit.

    Attributes:
        origin: u, ``[S, F]``.
        residual: Orthonormal directions ``[S, F, F - dim]``.
        scale: :math:`\\alpha`, ``[S]``.

    Raises:
        ValueError: If ``dim`` or ``max_bytes`` is not positive, or a form is unknown.
    """

    name = "vim"
    origin: Tensor
    residual: Tensor
    scale: Tensor

    def __init__(self, dim: int | None = None, *, forms: Sequence[Form] = FORMS, max_bytes: int = 2**30) -> None:
        super().__init__("origin", "residual", "scale", forms=forms, max_bytes=max_bytes)
        if dim is not None:
            check_positive_int("dim", dim)
        self.dim = dim

    def extra(self, outputs: NetworkOutputs) -> Tensor:
        """The largest output."""
        if outputs.weight is None or outputs.bias is None:
            raise ValueError(
                "outputs: ViM needs outputs that are the last layer's weight matrix times the features, and a bias; "
                "this network's are not, use another score."
            )
        return self.sets(outputs.logits).amax(-1, keepdim=True)

    def find(self, first: NetworkOutputs, features: Tensor, extra: Tensor) -> None:
        """The origin, the directions and the scale."""
        assert first.weight is not None and first.bias is not None
        size = features.shape[-1]
        dim = (1000 if size >= 2048 else 512 if size >= 768 else size // 2) if self.dim is None else self.dim
        if not 0 < dim < size:
            raise ValueError(f"dim: expected a dimension below that of the {size} features, got {dim}.")
        weight, bias = self.sets(first.weight).double(), self.sets(first.bias).double()
        origin = -(torch.linalg.pinv(weight) @ bias.unsqueeze(-1)).squeeze(-1)
        x = features.double() - origin.unsqueeze(1)
        residual = torch.linalg.eigh(x.mT @ x / x.shape[1]).eigenvectors[..., : size - dim]  # smallest first
        norm = (x @ residual).norm(dim=-1).mean(1)
        if not bool((norm > 0).all()):
            raise ValueError("dim: training features have nothing outside the principal space; take a smaller dim.")
        scale = extra.double().squeeze(-1).mean(1) / norm
        self.keep(first, x.shape[1], origin=origin, residual=residual, scale=scale)

    def distance(self, features: Tensor, logits: Tensor, sets: slice) -> Tensor:
        """The virtual logit against the others."""
        x = features.double() - self.origin[sets].unsqueeze(1)
        virtual = self.scale[sets].unsqueeze(1) * (x @ self.residual[sets]).norm(dim=-1)
        return virtual - logits.double().logsumexp(-1)

    def extra_repr(self) -> str:
        """The dimension, and the number of training data."""
        return f"dim={self.dim}, num_data={int(self.num_data)}"
