"""How a run of the model has used a weight that layers draw: one run must see one weight.

A network may call a layer several times in a run (time steps, tied layers). Outputs of all calls must then be
distributed jointly as under one weight. So an estimator says how it drew a weight, and for which rows, and a later
use in the same run takes the same draw; where there is none to take, the run ends with an error that names the sites.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

__all__ = ["OUTPUTS", "SHARED", "Uses", "in_one_run"]

OUTPUTS = ("the outputs of a layer",)
"""A draw of outputs: no weight was made that a second call could be given."""
SHARED = ("one weight for all rows",)


@dataclass
class Uses:
    """What one run of the model did with a weight.

    Attributes:
        first: How it was drawn first: what for, then numbers that a second use must share; None until then.
        other: How it was used later in another way; None where all uses go together.
        signs: Random signs of each row, by the name that the estimator gives them.
    """

    first: tuple[Hashable, ...] | None = None
    other: tuple[Hashable, ...] | None = None
    signs: dict[Hashable, Tensor] = field(default_factory=dict)

    def add(self, use: tuple[Hashable, ...]) -> None:
        """Records a use."""
        if self.first is None:
            self.first = use
        elif self.other is None and (use != self.first or use == OUTPUTS):
            self.other = use


class _Used(Protocol):
    uses: Uses | None
    estimator: Any


def in_one_run(weights: Mapping[str, _Used]) -> Callable[[Any], contextlib.AbstractContextManager[None]]:
    """Makes the context manager of each run of the model, in which the uses of weights are recorded.

    Args:
        weights: The weights that layers draw, by site.

    Raises:
        TypeError: At the end of the run, if a weight was used several times and the uses share no draw.
    """

    @contextlib.contextmanager
    def running(_: Any) -> Iterator[None]:
        uses = {}
        for site, weight in weights.items():
            uses[site] = weight.uses = Uses()
        try:
            yield
        finally:
            for weight in weights.values():
                weight.uses = None
        if apart := {site: use for site, use in uses.items() if use.other is not None}:
            raise TypeError(_refusal(apart, weights))

    return running


def _refusal(apart: Mapping[str, Uses], weights: Mapping[str, _Used]) -> str:
    site, use = next(iter(apart.items()))
    name = weights[site].estimator.name
    sites, more = list(apart)[:8], len(apart) - 8
    named = ", ".join(repr(each) for each in sites) + (f" and {more} more" if more > 0 else "")
    if use.first == use.other == OUTPUTS:
        why = (
            f"{name!r} draws the outputs of each call anew, as if each had a weight of its own. 'flipout' gives each "
            "row one weight in all calls"
        )
    else:
        why = (
            f"{name!r} drew {site!r} first for {_in_words(use.first)}, then for {_in_words(use.other)}, which are "
            "different weights"
        )
    return (
        f"estimator: one run of the network uses these weights several times: {named}. {why}; or let these sites have "
        f"the shared draw: estimator=[({site!r}, 'shared'), ..., ('*', {name!r})]."
    )


def _in_words(use: tuple[Hashable, ...] | None) -> str:
    assert use is not None
    what, *sizes = use
    return f"{what} ({', '.join(map(str, sizes))})" if sizes else str(what)
