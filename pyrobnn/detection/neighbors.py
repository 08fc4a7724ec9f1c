r"""The distance to the k-th nearest training input in feature space, features scaled to unit length.

Sun et al., "Out-of-distribution detection with deep nearest neighbors", 2022.
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

__all__ = ["KNN"]

_PAIRS = 2**22  # distances that are computed at once


@explained
class KNN(KeptFeatures):
    """The distance to the k-th nearest training input.

    Args:
        k: Which neighbor. The paper takes 50 for 50,000 training data of ten classes.
        normalize: Scale features to unit length.
        forms: The forms that are fitted; each draw keeps features of its own, ``("averaged",)`` one set.
        max_bytes: Most that training features may take.

    Attributes:
        neighbors: Training features ``[S, N, F]``.

    Raises:
        ValueError: If ``k`` or ``max_bytes`` is not positive, or a form is unknown.
    """

    name = "knn"
    neighbors: Tensor

    def __init__(
        self, k: int = 50, *, normalize: bool = True, forms: Sequence[Form] = FORMS, max_bytes: int = 2**30
    ) -> None:
        super().__init__("neighbors", forms=forms, max_bytes=max_bytes)
        check_positive_int("k", k)
        self.k, self.normalize = k, bool(normalize)

    def find(self, first: NetworkOutputs, features: Tensor, extra: Tensor) -> None:
        """Keeps all features."""
        if features.shape[1] < self.k:
            raise ValueError(
                f"k: the {self.k}-th nearest of {features.shape[1]} training rows was asked for; take a smaller k or "
                "more rows."
            )
        self.keep(first, features.shape[1], neighbors=self._scaled(features))

    def distance(self, features: Tensor, logits: Tensor, sets: slice) -> Tensor:
        """The distance to the k-th nearest."""
        known = self.neighbors[sets].double()
        center = known.mean(1, keepdim=True)  # products that distances are found by lose the digits of what is common
        known = known - center
        step = max(1, _PAIRS // (known.shape[0] * known.shape[1]))
        parts = []
        for part in (self._scaled(features).double() - center).split(step, 1):
            index = torch.cdist(part, known).kthvalue(self.k, -1).indices
            nearest = known.gather(1, index.unsqueeze(-1).expand_as(part))
            parts.append((part - nearest).norm(dim=-1))  # of the pair itself, exact where products are not: near 0
        return torch.cat(parts, 1)

    def extra_repr(self) -> str:
        """k, and the number of training data."""
        return f"k={self.k}, normalize={self.normalize}, num_data={int(self.num_data)}"

    def _scaled(self, features: Tensor) -> Tensor:
        return torch.nn.functional.normalize(features, dim=-1) if self.normalize else features
