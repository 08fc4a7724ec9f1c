"""A Pyro handler that sets sample sites to given values and records the model's sample statements.

``poutine.condition`` would turn the sites into observations and ``poutine.replay`` needs a trace; this handler costs
a few microseconds a site, keeps no trace, and records scales, masks and plates as the model applied them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrobnn.core.handlers import ExclusiveMessenger
from pyrobnn.core.pyro_compat import sole_handler

__all__ = ["SubstituteMessenger", "direct_handler", "masked_sum", "summed_score", "unscaled_score"]


class SubstituteMessenger(ExclusiveMessenger):
    """Sets the latent sites named in ``values`` to these values, and records all sites of the run.

    Args:
        values: Site values.
        direct: Whether modules of this library may call :meth:`answer` and :meth:`observe` instead of
            ``pyro.sample`` while this is the only active handler (:func:`direct_handler`). Pyro's messages take half
            of the time of a small network's run. Pyro's checks are then skipped, so the model must have run with
            them before.

    Attributes:
        latent: Messages of latent sites the model ran through, in order.
        observed: Messages of its observed sites.
        deterministic: Messages of its ``pyro.deterministic`` sites.
    """

    def __init__(self, values: Mapping[str, Tensor], *, direct: bool = False) -> None:
        super().__init__()
        self.values = values
        self.direct = direct
        self.latent: list[Any] = []
        self.observed: list[Any] = []
        self.deterministic: list[Any] = []
        self._recorded: set[str] = set()  # a module that runs twice draws its sites once

    def answer(self, prefix: str, priors: Mapping[str, dist.Distribution | Tensor]) -> dict[str, Tensor]:
        """Values of latent sites outside of plates, as ``pyro.sample`` would return them.

        Args:
            prefix: What the names of the sites begin with in the model.
            priors: The distribution of each site by the rest of its name; a tensor is a value that is not sampled,
                and left out.

        Returns:
            The values there are, by the names in ``priors``.
        """
        found = {}
        for rest, prior in priors.items():
            name = prefix + rest
            value = self.values.get(name)
            if value is None or isinstance(prior, Tensor):
                continue
            found[rest] = value
            if name not in self._recorded:
                self.latent.append(_message(name, prior, value, 1.0))
                self._recorded.add(name)
        return found

    def observe(
        self,
        name: str,
        distribution: dist.Distribution,
        value: Tensor,
        scale: float | Tensor,
        mask: Tensor | None = None,
    ) -> None:
        """Records an observation whose log density counts ``scale`` times, and only where ``mask`` is true."""
        self.observed.append(_message(name, distribution, value, scale, mask))

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if msg["infer"].get("_deterministic", False):
            self.deterministic.append(msg)
        elif msg["is_observed"]:
            self.observed.append(msg)
        elif msg["name"] not in self._recorded:
            self.latent.append(msg)


def direct_handler() -> SubstituteMessenger | None:
    """The active handler if it is the only one and was made with ``direct=True``, else None."""
    handler = sole_handler()
    return handler if isinstance(handler, SubstituteMessenger) and handler.direct else None


def _message(
    name: str, distribution: dist.Distribution, value: Tensor, scale: float | Tensor, mask: Tensor | None = None
) -> dict[str, Any]:
    """The fields of Pyro's messages that objectives read."""
    return {"name": name, "fn": distribution, "value": value, "scale": scale, "mask": mask, "cond_indep_stack": ()}


def summed_score(score: Tensor, message: Any) -> Tensor:
    """The sum of a log density or divergence under the site's mask and scale."""
    return masked_sum(score, message["mask"], message["scale"])


def masked_sum(score: Tensor, mask: Tensor | bool | None, scale: float | Tensor) -> Tensor:
    """``scale`` times the sum of the elements where ``mask`` is true (None: of all)."""
    score = _masked(score, mask)
    if torch.is_tensor(scale):
        return (score * scale).sum()
    total = score.sum()
    return total if scale == 1.0 else total * scale


def unscaled_score(message: Any) -> Tensor:
    """The log density of a site, of its batch shape, without its scale; 0 where it is masked."""
    return _masked(message["fn"].log_prob(message["value"]), message["mask"])


def _masked(score: Tensor, mask: Tensor | bool | None) -> Tensor:
    if mask is None or mask is True:
        return score
    if mask is False:
        return score * 0.0
    return torch.where(mask, score, torch.zeros_like(score))
