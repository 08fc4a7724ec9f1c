"""Draws of a posterior, with all that running a model under them and scoring them needs."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import pyro.distributions as dist
from torch import Tensor, nn

from pyrobnn.model.bayesianize import buffers, exchanged_buffers
from pyrobnn.model.substitution import SubstituteMessenger

__all__ = ["Draws", "Surroundings", "installed_buffers"]

Surroundings: TypeAlias = Callable[[nn.Module], contextlib.AbstractContextManager[Any]]
"""Context managers of a run of the model under a draw, such as masks on the inputs of layers."""


class Draws(dict[str, Tensor]):
    """One draw ``{site: [*site shape]}``, or K of them with a leading dimension.

    Args:
        values: Values by site.
        buffers: Buffers that these draws are to be run with, by their name in the model, ``[K, *buffer shape]``;
            all other buffers are the model's own.
        component: For a mixture of finitely many atoms: which of them, an integer tensor ``[]`` or ``[K]``.
        record: What the step or guide that made the draw keeps for scoring it: noise, moments, its memory.
        size: Number K of draws where the step makes several at once; None for one draw, or if it is not needed.
        live: Whether ``buffers`` keep what the model writes into them (those of a training step do).
        around: Context managers of a run of the model.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor] | None = None,
        *,
        component: Tensor | None = None,
        record: Any = None,
        size: int | None = None,
        live: bool = False,
        around: Iterable[Surroundings] = (),
    ) -> None:
        super().__init__(values)
        self.buffers = dict(buffers or {})
        self.component, self.record, self.size, self.live = component, record, size, live
        self.around = tuple(around)

    @classmethod
    def of(cls, draws: Mapping[str, Tensor]) -> Draws:
        """The draws themselves, with no buffers if they have none."""
        return draws if isinstance(draws, Draws) else cls(draws)

    @classmethod
    def merged(cls, parts: Iterable[Draws], order: Iterable[str], record: Any = None) -> Draws:
        """Draws of different sites as one, in the given order; at most one part has a component."""
        parts = list(parts)
        values = {name: value for part in parts for name, value in part.items()}
        own = {name: value for part in parts for name, value in part.buffers.items()}
        return cls(
            {name: values[name] for name in order},
            own,
            component=next((part.component for part in parts if part.component is not None), None),
            record=record,
            live=any(part.live for part in parts),
            around=[around for part in parts for around in part.around],
        )

    def at(self, index: Any) -> Draws:
        """Draw ``index``, or those that a slice or an index tensor names."""
        return Draws(
            {name: value[index] for name, value in self.items()},
            {name: value[index] for name, value in self.buffers.items()},
            component=None if self.component is None else self.component[index],
            live=self.live,
            around=self.around,
        )

    def running(
        self, model: Callable[..., Any], *, update: bool
    ) -> contextlib.AbstractContextManager[SubstituteMessenger]:
        """Surrounds one run of the model under this draw.

        Args:
            model: The model.
            update: Whether what the run writes into the model's own buffers (running statistics) is kept. Buffers of
                the draw keep it if they are live.

        Returns:
            A context manager that gives the handler, in which the run writes down its sites.

        Raises:
            KeyError: If the model has no buffer of a name that the draw has.
        """
        run = SubstituteMessenger(self, direct=not dist.is_validation_enabled())  # fit validates in its first epoch
        if not isinstance(model, nn.Module):
            return run
        if not self.buffers and not self.around and (update or not _slots(model, ())[1]):
            return run
        return self._surrounded(model, run, update)

    @contextlib.contextmanager
    def _surrounded(self, model: nn.Module, run: SubstituteMessenger, update: bool) -> Iterator[SubstituteMessenger]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.installed(model, update=update))
            for around in self.around:
                stack.enter_context(around(model))
            yield stack.enter_context(run)

    @contextlib.contextmanager
    def installed(self, model: nn.Module, *, update: bool = True) -> Iterator[None]:
        """Lets the model work with the buffers of this draw; its own come back when the block ends."""
        own, others = _slots(model, tuple(self.buffers))
        inside = [
            (module, local, buffer if self.live else buffer.clone())
            for (module, local), buffer in zip(own, self.buffers.values(), strict=True)
        ]
        if not update:  # copies, since graphs may have saved the buffers for their backward pass
            inside += [(module, local, module.get_buffer(local).clone()) for module, local in others]
        with exchanged_buffers(inside):
            yield

    def __reduce__(self) -> Any:  # a record may hold memory of a step; a copy is a draw by itself
        return _rebuilt, (dict(self), self.buffers, self.component)


def _rebuilt(values: dict[str, Tensor], own: dict[str, Tensor], component: Tensor | None) -> Draws:
    return Draws(values, own, component=component)


_Slot: TypeAlias = tuple[nn.Module, str]
_Known: TypeAlias = tuple[tuple[str, ...], list[Any], list[Any]]  # names, and weak references to slots
_seen: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def _slots(model: nn.Module, names: tuple[str, ...]) -> tuple[list[_Slot], list[_Slot]]:
    """Where the named buffers are in the model, and all its other buffers; found once for each model."""
    known = _seen.get(model)
    if known is None or known[0] != names or any(owner() is None for owner, _ in known[1]):
        modules = dict(model.named_modules())
        own = [(modules[(path := name.rpartition("."))[0]], path[2]) for name in names]
        taken = {(id(module), local) for module, local in own}
        others = [(module, local) for module, local, _ in buffers(model) if (id(module), local) not in taken]
        found = [[(weakref.ref(module), local) for module, local in part] for part in (own, others)]
        known = _seen[model] = names, found[0], found[1]
    return _alive(known[1]), _alive(known[2])


def _alive(slots: list[Any]) -> list[_Slot]:
    return [(owner(), local) for owner, local in slots]


def installed_buffers(model: nn.Module, own: Mapping[str, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Lets the model work on copies of these buffers (by name); its own are restored, untouched, when the block ends.

    Raises:
        KeyError: If the model has no such buffer.
    """
    return Draws({}, own).installed(model)
