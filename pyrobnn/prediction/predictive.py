"""A drop-in for ``pyro.infer.Predictive`` that keeps no traces."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.exclusive import exclusive
from pyrobnn.core.explanations import explained
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.prediction.draws import PinnedDraws

__all__ = ["Predictive"]

_SPECIAL = frozenset({"_INPUT", "_RETURN"})  # names of Pyro's for a model's arguments and value
_BLOCK_BYTES = 2**28  # more than PinnedDraws makes at once


@explained
class Predictive(nn.Module):
    """Samples of a model's sites under posterior draws, with the signature and semantics of Pyro's class.

    Pyro keeps the whole trace of every draw, that is every weight again; this class keeps only what it
    returns, and leaves buffers as they were. Networks cannot take batched weights, so draws run one after
    another.

    Args:
        model: A Pyro model.
        posterior_samples: Draws ``{site: [K, …]}``.
        guide: A guide to draw from instead; any Pyro guide.
        num_samples: Number of draws, if ``posterior_samples`` does not say.
        return_sites: Sites to return (``"_RETURN"`` is the model's value). By default those not in
            ``posterior_samples``, or all of them with a guide.
        parallel: Refused: it cannot work on networks.

    Raises:
        TypeError: If ``return_sites`` is a single name.
        ValueError: If neither draws nor their number is given, both draws and a guide are, or ``parallel`` is
            asked for.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        posterior_samples: Mapping[str, Tensor] | None = None,
        guide: Callable[..., Any] | None = None,
        num_samples: int | None = None,
        return_sites: Collection[str] | None = (),
        parallel: bool = False,
    ) -> None:
        super().__init__()
        if parallel:
            raise ValueError(
                "parallel: a network's layers cannot take weights with a leading sample dimension; leave it "
                "False, or use pyrobnn.predict(..., method='vmap')."
            )
        if isinstance(return_sites, str):
            raise TypeError(f"return_sites: expected a list of site names, got the str {return_sites!r}.")
        if guide is not None and posterior_samples:
            raise ValueError("posterior_samples: cannot be given together with a guide; pass one of the two.")
        lengths = {len(value) for value in (posterior_samples or {}).values()}
        if len(lengths) > 1:
            raise ValueError(f"posterior_samples: the sites have different numbers of draws, {sorted(lengths)}.")
        if lengths:
            (length,) = lengths
            if num_samples not in (None, length):
                warnings.warn(
                    f"num_samples is {num_samples}, but posterior_samples holds {length} draws: using those.",
                    stacklevel=3,
                )
            num_samples = length
        if num_samples is None:
            raise ValueError("num_samples: give either posterior_samples or the number of draws.")
        check_positive_int("num_samples", num_samples)
        for name, given in (("model", model), ("guide", guide)):
            if (given is not None or name == "model") and (isinstance(given, type) or not callable(given)):
                raise TypeError(f"{name}: expected a callable with Pyro's sample statements, got {given!r}.")
        self.model, self.guide = model, guide
        self.posterior_samples = Draws.of(posterior_samples or {})
        self.num_samples = num_samples
        self.return_sites = return_sites

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Runs the model once per draw.

        Args:
            args: The model's arguments.
            kwargs: Its keyword arguments.

        Returns:
            ``{site: [num_samples, …]}``; as in Pyro's class, sites with fewer batch dimensions than the
            model's plates have dimensions of size 1 after the first, so that sites broadcast against each
            other.

        Raises:
            ValueError: If ``return_sites`` has a name that is no site of the model.
        """
        module = self.model if isinstance(self.model, nn.Module) else nn.Module()
        collected: dict[str, list[Any]] = {}
        lead: dict[str, int] = {}
        with frozen_buffers(module):
            for index, draw in enumerate(self._draws(args, kwargs)):
                run = SubstituteMessenger(draw, direct=index > 0)  # the first run is validated
                with installed_buffers(module, draw.buffers), run:
                    returned = self.model(*args, **kwargs)
                messages = [*run.latent, *run.observed, *run.deterministic]
                if index == 0:
                    self._check_sites([message["name"] for message in messages])
                lead = lead or _missing_dims(messages)
                for message in messages:
                    if self._returns(message["name"]):
                        collected.setdefault(message["name"], []).append(self._kept(message["value"], draw))
                if self.return_sites is not None and "_RETURN" in self.return_sites:
                    collected.setdefault("_RETURN", []).append(self._kept(returned, draw))
        return {name: _stacked(values, lead.get(name, 0)) for name, values in collected.items()}

    def call(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The values of :meth:`forward` as a tuple, by sorted site names."""
        return tuple(value for _, value in sorted(self.forward(*args, **kwargs).items()))

    def _check_sites(self, known: list[str]) -> None:
        """Refuses names of no site, of which Pyro's class returns nothing."""
        unknown = sorted(set(self.return_sites or ()) - set(known) - _SPECIAL)
        if unknown:
            raise ValueError(
                f"return_sites: the model has no {', '.join(map(repr, unknown))}; its sites are "
                f"{', '.join(map(repr, known)) or 'none'}, and '_RETURN' is what it returns."
            )

    def _returns(self, name: str) -> bool:
        if self.return_sites:
            return name in self.return_sites
        if self.return_sites is None or self.guide is not None:
            return True
        return name not in self.posterior_samples

    def _kept(self, value: Any, draw: Draws) -> Any:
        """The value, in memory of its own where that of the draw will be overwritten by a later one."""
        if not isinstance(self.guide, Guide):
            return value
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return copy.deepcopy(value)
        taken = {tensor.untyped_storage().data_ptr() for tensor in draw.values()}
        return value.clone() if value.untyped_storage().data_ptr() in taken else value

    def _draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Draws]:
        """The draws one by one."""
        if isinstance(self.guide, Guide):
            for block in PinnedDraws(self.guide, self.num_samples, _BLOCK_BYTES, replayed=False).passing():
                yield from Draws.of(block).each()
        elif self.guide is None and self.posterior_samples:
            yield from self.posterior_samples.each()
        else:
            for _ in range(self.num_samples):
                yield Draws({} if self.guide is None else self._traced(args, kwargs))

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A draw of a guide of Pyro's."""
        assert self.guide is not None
        with exclusive():
            trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
        return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}


def _missing_dims(messages: list[Any]) -> dict[str, int]:
    """How many batch dimensions each site has fewer than the model's deepest plate requires."""
    depth = max((-f.dim for m in messages for f in m["cond_indep_stack"] if f.vectorized), default=0)
    return {message["name"]: depth - len(message["fn"].batch_shape) for message in messages}


def _stacked(values: list[Any], missing: int) -> Any:
    if not torch.is_tensor(values[0]):
        return values
    stacked = torch.stack(values)
    return stacked.reshape(len(values), *(1,) * missing, *values[0].shape)
