r"""Acquisition by features of the inputs, for networks without a posterior.

* ``BADGE``: k-means++ on gradients of the last layer's weights at the predicted label (Ash et al., ICLR 2020).
* ``CoreSet``: greedy k-centers (Sener and Savarese, ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.decisions.acquisition import Acquisition, Pool

__all__ = ["BADGE", "CoreSet"]


@explained
class CoreSet(Acquisition):
    """Greedy k-centers: each time the input that is farthest from all that have labels or were chosen.

    Args:
        features: From inputs to features ``[N, F]``; None takes the inputs themselves.
    """

    needs_posterior = False

    def __init__(self, features: Callable[[Tensor], Tensor] | None = None) -> None:
        self.features = features

    @torch.no_grad()
    def choose(self, pool: Pool, size: int) -> Tensor:
        """One input after the other."""
        here = _features(self.features, pool.inputs)
        if len(pool.labeled):
            nearest = torch.cdist(here, _features(self.features, pool.labeled)).min(1).values
        else:
            nearest = torch.full((len(here),), torch.inf, dtype=here.dtype, device=here.device)
        chosen: list[int] = []
        for _ in range(size):
            nearest[chosen] = -1.0
            chosen.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, torch.cdist(here, here[chosen[-1:]]).squeeze(1))
        return torch.tensor(chosen, device=here.device)


@explained
class BADGE(Acquisition):
    r"""k-means++ on the gradients :math:`(p - e_{\hat y}) \otimes \varphi(x)` of the last layer at the predicted label.

    Distances are computed from the two factors, so that the products are never made.

    Args:
        features: From inputs to features ``[N, F]``, what the last layer sees; None takes the inputs themselves.
    """

    def __init__(self, features: Callable[[Tensor], Tensor] | None = None) -> None:
        self.features = features

    @torch.no_grad()
    def choose(self, pool: Pool, size: int) -> Tensor:
        """The longest gradient first, then with probability in proportion to the squared distance."""
        probs = pool.prediction.mean.double()
        scale = probs - torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1])
        here = _features(self.features, pool.inputs).double()
        square = scale.square().sum(1) * here.square().sum(1)
        chosen = [int(square.argmax())]
        distance = torch.full_like(square, torch.inf)
        while len(chosen) < size:
            last = chosen[-1]
            product = (scale @ scale[last]) * (here @ here[last])
            distance = torch.minimum(distance, (square + square[last] - 2 * product).clamp_min(0.0))
            distance[chosen] = 0.0
            if float(distance.sum()) > 0:
                chosen.append(int(torch.multinomial(distance, 1)))
            else:  # all gradients left are equal to chosen ones
                free = torch.ones(len(square), dtype=torch.bool)
                free[chosen] = False
                chosen.append(int(free.nonzero()[torch.randint(int(free.sum()), ())]))
        return torch.tensor(chosen, device=probs.device)


def _features(function: Callable[[Tensor], Tensor] | None, inputs: Tensor) -> Tensor:
    found = inputs if function is None else function(inputs)
    return found.flatten(1) if found.dim() > 1 else found.unsqueeze(1)
