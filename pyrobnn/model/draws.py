"""Draws of a posterior: site values, and what is needed to run a model with them and to score them."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import pyro.distributions as dist
from torch import Tensor, nn

from pyrobnn.core.exclusive import exclusive
from pyrobnn.model.bayesianize import buffers, exchanged_buffers
from pyrobnn.model.recomputation import keeping_activations
from pyrobnn.model.substitution import SubstituteMessenger

__all__ = ["Draws", "RunContext", "installed_buffers"]

RunContext: TypeAlias = Callable[[Any], contextlib.AbstractContextManager[Any]]
"""Makes a context manager in which the model is run, such as one that masks the inputs of layers."""


class Draws(dict[str, Tensor]):
    """One draw ``{site: [*site shape]}``, or K of them with a leading dimension.

    Args:
        values: Values by site.
        buffers: Values for buffers of the model, by their name in it, ``[K, *buffer shape]``; the model's other
            buffers are used as they are.
        component: Index of the component of a finite mixture that each draw is, an integer tensor ``[]`` or ``[K]``.
        record: State that the step or guide needs to compute the divergence of this draw; private to it.
        size: Number K of draws where a training step makes all members of an ensemble at once, else None.
        live: Whether a run of the model writes into ``buffers`` themselves (as in training) instead of into copies.
        contexts: Context managers that each run of the model is made in.
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
        contexts: Iterable[RunContext] = (),
    ) -> None:
        super().__init__(values)
        self.buffers = dict(buffers or {})
        self.component, self.record, self.size, self.live = component, record, size, live
        self.contexts = tuple(contexts)

    @classmethod
    def of(cls, draws: Mapping[str, Tensor]) -> Draws:
        """``draws`` as :class:`Draws`: the same object if it is one, else without buffers."""
        return draws if isinstance(draws, Draws) else cls(draws)

    @classmethod
    def merged(cls, parts: Iterable[Draws], order: Iterable[str], record: Any = None) -> Draws:
        """Draws of different sites as one, in the given order; at most one part has a component."""
        parts = list(parts)
        values = {name: value for part in parts for name, value in part.items()}
        merged_buffers = {name: value for part in parts for name, value in part.buffers.items()}
        return cls(
            {name: values[name] for name in order},
            merged_buffers,
            component=next((part.component for part in parts if part.component is not None), None),
            record=record,
            live=any(part.live for part in parts),
            contexts=[context for part in parts for context in part.contexts],
        )

    def at(self, index: Any) -> Draws:
        """Draw ``index``, or those that a slice or an index tensor names."""
        return Draws(
            {name: value[index] for name, value in self.items()},
            {name: value[index] for name, value in self.buffers.items()},
            component=None if self.component is None else self.component[index],
            live=self.live,
            contexts=self.contexts,
        )

    def each(self, start: int = 0) -> Iterator[Draws]:
        """The draws from ``start`` on, one by one, as :meth:`at` gives them, with one call of torch a tensor."""

        def rows(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
            found = zip(*(value[start:].unbind() for value in tensors.values()), strict=True)
            return (dict(zip(tensors, row, strict=True)) for row in found)

        own = rows(self.buffers) if self.buffers else itertools.repeat({})
        components = itertools.repeat(None) if self.component is None else self.component[start:].unbind()
        for values, of_draw, component in zip(rows(self), own, components, strict=False):
            yield Draws(values, of_draw, component=component, live=self.live, contexts=self.contexts)

    def settled(self) -> Draws:
        """The same draw, of which further runs of the model write into copies of its buffers."""
        return Draws(self, self.buffers, component=self.component, contexts=self.contexts)

    def detached(self) -> Draws:
        """The same draw outside of any graph, its buffers :meth:`settled`."""
        values = {name: value.detach() for name, value in self.items()}
        return Draws(values, self.buffers, component=self.component, contexts=self.contexts)

    def running(
        self, model: Callable[..., Any], *, update: bool
    ) -> contextlib.AbstractContextManager[SubstituteMessenger]:
        """Context manager for one run of the model with the values of this draw.

        Args:
            model: The model.
            update: Whether what the run writes into the model's own buffers (running statistics) stays there. For
                buffers of the draw, ``live`` decides.

        Returns:
            A context manager; entering it gives the handler that records the sample sites of the run.

        Raises:
            KeyError: If the model has no buffer of a name that the draw has.
        """
        run = SubstituteMessenger(self, direct=not dist.is_validation_enabled())  # fit validates in its first epoch
        if not isinstance(model, nn.Module):
            return self._in_contexts(model, run, update) if self.contexts else run
        if not self.buffers and not self.contexts and (update or not _buffer_slots(model, ())[1]):
            return run
        return self._in_contexts(model, run, update)

    @contextlib.contextmanager
    def _in_contexts(self, model: Any, run: SubstituteMessenger, update: bool) -> Iterator[SubstituteMessenger]:
        with contextlib.ExitStack() as stack:
            if isinstance(model, nn.Module):
                stack.enter_context(self.installed(model, update=update))
            if self.contexts:  # hooks, say, which are gone when the backward pass would repeat a part of the run
                stack.enter_context(keeping_activations())
            for context in self.contexts:
                stack.enter_context(context(model))
            yield stack.enter_context(run)

    @contextlib.contextmanager
    def installed(self, model: nn.Module, *, update: bool = True) -> Iterator[None]:
        """Replaces buffers of the model by those of this draw; the model's are put back when the block ends."""
        own, others = _buffer_slots(model, tuple(self.buffers))
        with exclusive():
            replacements = [
                (module, local, buffer if self.live else buffer.clone())
                for (module, local), buffer in zip(own, self.buffers.values(), strict=True)
            ]
            if not update:  # copies, since graphs may have saved the buffers for their backward pass
                replacements += [(module, local, module.get_buffer(local).clone()) for module, local in others]
            with exchanged_buffers(replacements):
                yield

    def __reduce__(self) -> Any:  # without the record, which may hold memory of a training step
        return _unpickled, (dict(self), self.buffers, self.component)


def _unpickled(values: dict[str, Tensor], buffers: dict[str, Tensor], component: Tensor | None) -> Draws:
    return Draws(values, buffers, component=component)


_Slot: TypeAlias = tuple[nn.Module, str]
_CachedSlots: TypeAlias = tuple[tuple[str, ...], list[Any], list[Any]]  # names, and weak references to slots
_slot_cache: weakref.WeakKeyDictionary[nn.Module, _CachedSlots] = weakref.WeakKeyDictionary()


def _buffer_slots(model: nn.Module, names: tuple[str, ...]) -> tuple[list[_Slot], list[_Slot]]:
    """``(module, local name)`` of the named buffers and of all other buffers of the model; cached by model."""
    cached = _slot_cache.get(model)
    if cached is None or cached[0] != names or any(owner() is None for owner, _ in cached[1]):
        modules = dict(model.named_modules())
        own = [(modules[(path := name.rpartition("."))[0]], path[2]) for name in names]
        taken = {(id(module), local) for module, local in own}
        others = [(module, local) for module, local, _ in buffers(model) if (id(module), local) not in taken]
        found = [[(weakref.ref(module), local) for module, local in part] for part in (own, others)]
        cached = _slot_cache[model] = names, found[0], found[1]
    return _dereferenced(cached[1]), _dereferenced(cached[2])


def _dereferenced(slots: list[Any]) -> list[_Slot]:
    return [(owner(), local) for owner, local in slots]


def installed_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Replaces buffers of the model by copies of ``values`` (by name); the model's are put back when the block ends.

    Raises:
        KeyError: If the model has no such buffer.
    """
    return Draws({}, values).installed(model)
