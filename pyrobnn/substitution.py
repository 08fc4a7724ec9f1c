"""A Pyro handler that answers sample sites with given values and writes down what the model asked.

``poutine.condition`` would turn the sites into observations and ``poutine.replay`` needs a trace; this handler costs
a few microseconds a site, keeps no trace, and sees scales, masks and plates as the model applied them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["Substitution"]


class Substitution(Messenger):
    """Answers the latent sites named in ``values``.

    Args:
        values: Site values.

    Attributes:
        latent: Messages of latent sites the model ran through, in order.
        observed: Messages of its observed sites.
        deterministic: Messages of its ``pyro.deterministic`` sites.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.latent: list[Any] = []
        self.observed: list[Any] = []
        self.deterministic: list[Any] = []

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if msg["infer"].get("_deterministic", False):
            self.deterministic.append(msg)
        else:
            (self.observed if msg["is_observed"] else self.latent).append(msg)
