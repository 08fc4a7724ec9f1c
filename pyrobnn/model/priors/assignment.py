"""Which prior each parameter of a network gets, by the rules of :mod:`pyrobnn.model.priors.rules`."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import nn

from pyrobnn.core.explanations import explained
from pyrobnn.distributions.fixed_row import without_row
from pyrobnn.model.priors.base import FixedPrior, Prior
from pyrobnn.model.priors.padding import PaddedPrior
from pyrobnn.model.priors.rules import NORM_LAYERS, Pattern, PriorRule, PriorSpec

__all__ = ["assign"]


@explained
def assign(net: nn.Module, prior: PriorSpec) -> dict[str, Prior | None]:
    """The prior (or None: deterministic) of every parameter of ``net``, by name, tied parameters once.

    * A rule alone means ``[("*", rule)]``.
    * A pattern is a glob on the parameter's name, or a module class (or tuple of classes) owning it.
    * The first pattern that matches decides.
    * ``"*"`` means all the *ordinary* weights: frozen parameters (``requires_grad=False``) and those of norm
      layers stay deterministic unless a more specific pattern names them.
    * A parameter whose module declares its prior, by a method ``own_prior(name)``, keeps it (those of
      :mod:`pyrobnn.structure` do): rules for weights pass it by. A pattern other than ``"*"`` with None keeps it at its
      present value, one with a function that returns a :class:`~pyrobnn.priors.Prior` replaces its prior.

    Raises:
        ValueError: If a pattern matches no parameter, a trainable parameter is matched by none, or a prior does
            not fit its parameter.
        TypeError: If a rule is neither a distribution, a function nor None.
    """
    if not (_is_rule(prior) or isinstance(prior, Sequence)) or isinstance(prior, str):
        raise TypeError(
            "prior: expected a Pyro distribution such as pyro.distributions.Normal(0., 1.), a function "
            f"(name, parameter, module) -> prior, or a list of (pattern, prior) pairs, got {prior!r}."
        )
    rules: list[Any] = [("*", prior)] if _is_rule(prior) else list(prior)  # type: ignore[arg-type]
    for entry in rules:
        if not (isinstance(entry, tuple) and len(entry) == 2):
            raise TypeError(f"prior: expected (pattern, prior) pairs in the list of rules, got {entry!r}.")
        if not _is_pattern(entry[0]):
            raise TypeError(
                "prior: a pattern is a glob on parameter names, a module class or a tuple of classes, got "
                f"{entry[0]!r}."
            )
        if entry[1] is not None and not _is_rule(entry[1]):
            raise TypeError(f"prior: the rule of {entry[0]!r} is neither a distribution, a function nor None.")
    names = _tied_names(net)
    if not names:
        raise ValueError("net: it has no parameters, so there is nothing to put a prior on.")
    matched = [False] * len(rules)
    assigned: dict[str, Prior | None] = {}
    for name, (aliases, parameter, owners) in names.items():
        special = not parameter.requires_grad or isinstance(owners[0], NORM_LAYERS)
        hits = [i for i, (pattern, _) in enumerate(rules) if _matches(pattern, aliases, owners)]
        for hit in hits:
            matched[hit] = True
        hits = [i for i in hits if not (special and rules[i][0] == "*")]
        if (own := _own_prior(owners[0], name)) is not None:
            assigned[name] = _keep_own(own, [rules[i] for i in hits], name, parameter, owners[0])
            continue
        if not hits and not special:
            raise ValueError(
                f"prior: no rule matches the parameter {name!r} (shape {tuple(parameter.shape)}); add a rule for it, "
                f'or a last ("*", None) to keep everything else deterministic.'
            )
        assigned[name] = _of_rows(rules[hits[0]][1], name, parameter, owners) if hits else None
    for (pattern, _), hit in zip(rules, matched, strict=True):
        if not hit:
            raise ValueError(
                f"prior: the pattern {pattern!r} matches no parameter; the network has {', '.join(list(names)[:12])}"
                f"{', …' if len(names) > 12 else ''}."
            )
    if _is_rule(prior) and not any(assigned.values()):
        raise ValueError(
            "prior: every parameter is frozen or belongs to a norm layer, so no parameter would be random; name the "
            'parameters in a rule such as [("fc*", prior), ("*", None)].'
        )
    return assigned


def _own_prior(module: nn.Module, name: str) -> Prior | None:
    """The prior that a module declares for a parameter of its own, if it does."""
    declare = getattr(module, "own_prior", None)
    return None if declare is None else declare(name.rpartition(".")[2])


def _keep_own(own: Prior, rules: list[Any], name: str, parameter: nn.Parameter, module: nn.Module) -> Prior | None:
    """The declared prior, unless the first rule fixes the parameter or makes a ``Prior`` for it."""
    if not rules:
        return own.to(parameter)
    rule: Any = rules[0][1]
    result = rule(name, parameter, module) if rule is not None and not isinstance(rule, dist.Distribution) else rule
    if result is None:
        return None
    return _resolve(lambda *_: result if isinstance(result, Prior) else own, name, parameter, module)


def _is_rule(prior: object) -> bool:
    return isinstance(prior, dist.Distribution) or (callable(prior) and not isinstance(prior, type))


def _is_pattern(pattern: object) -> bool:
    classes = pattern if isinstance(pattern, tuple) else (pattern,)
    return isinstance(pattern, str) or all(isinstance(c, type) and issubclass(c, nn.Module) for c in classes)


def _tied_names(net: nn.Module) -> dict[str, tuple[list[str], nn.Parameter, list[nn.Module]]]:
    """First name -> (all names, parameter, owning modules), one entry per distinct parameter."""
    first: dict[int, str] = {}
    found: dict[str, tuple[list[str], nn.Parameter, list[nn.Module]]] = {}
    for prefix, module in net.named_modules(remove_duplicate=False):
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local}" if prefix else local
            key = first.setdefault(id(parameter), name)
            names, _, owners = found.setdefault(key, ([], parameter, []))
            names.append(name)
            owners.append(module)
    return found


def _matches(pattern: Pattern, names: list[str], owners: list[nn.Module]) -> bool:
    if isinstance(pattern, str):
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)
    return any(isinstance(owner, pattern) for owner in owners)


def _of_rows(rule: PriorRule | None, name: str, parameter: nn.Parameter, owners: list[nn.Module]) -> Prior | None:
    """The rule's prior, of an embedding for all rows but that of padding, which only embeddings use and none trains."""
    indices = {m.padding_idx if isinstance(m, nn.Embedding | nn.EmbeddingBag) else None for m in owners}
    index = indices.pop() if len(indices) == 1 else None
    if rule is None or index is None or len(parameter) == 1:
        return _resolve(rule, name, parameter, owners[0])
    trained = nn.Parameter(without_row(parameter.detach(), index), requires_grad=False)
    found = rule if isinstance(rule, dist.Distribution) else rule(name, trained, owners[0])
    if found is None or (isinstance(found, Prior) and found.shape == parameter.shape):
        return None if found is None else found.to(parameter)
    try:
        others = _resolve(lambda *_: found, name, trained, owners[0])
    except ValueError as error:
        raise ValueError(f"{error} Row {index} is that of padding, a constant, and has no prior.") from error
    assert others is not None
    return PaddedPrior(others, index, parameter.detach()[index])


def _resolve(rule: PriorRule | None, name: str, parameter: nn.Parameter, module: nn.Module) -> Prior | None:
    result = rule(name, parameter, module) if rule is not None and not isinstance(rule, dist.Distribution) else rule
    if result is None:
        return None
    if not parameter.is_floating_point():
        raise ValueError(
            f"prior of {name!r}: the parameter is of {parameter.dtype}, and priors are over real floating-point "
            f"numbers; keep it deterministic by a first rule ({name!r}, None)."
        )
    if isinstance(result, Prior):
        if result.shape != parameter.shape:
            raise ValueError(
                f"prior of {name!r}: made for the shape {tuple(result.shape)}, but the parameter has "
                f"{tuple(parameter.shape)}."
            )
        return result.to(parameter)
    return FixedPrior(result, parameter.shape, name).to(parameter)
