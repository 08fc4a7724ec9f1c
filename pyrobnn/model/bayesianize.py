r"""Any network becomes a Pyro model: its parameters become sample sites.

:func:`bayesianize` copies an :class:`torch.nn.Module` and gives each parameter that a prior rule names a sample
site, ``w ~ p(w)``. Conversion goes by parameter, not by layer class, and the drawn weights are *substituted* into
the unchanged network (:func:`torch.func.functional_call`), so every layer that computes with its parameters works:
linear, (transposed) convolutional, recurrent, attention, embedding, normalization. Tied parameters are one site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.func import functional_call

from pyrobnn.core.attention import attention_as_trained
from pyrobnn.core.exclusive import exclusive
from pyrobnn.core.explanations import explained
from pyrobnn.core.module_state import modes_restored
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.model.declarations import declares_default_prior
from pyrobnn.model.inputs import with_inputs_kept
from pyrobnn.model.network_copy import check_network, check_sites, copied
from pyrobnn.model.priors import Prior, PriorSpec, assign, default
from pyrobnn.model.recomputation import Substitution
from pyrobnn.model.stochastic import StochasticModule
from pyrobnn.model.substitution import direct_handler

__all__ = ["BayesianModule", "bayesianize", "has_default_prior"]


@explained
def bayesianize(net: nn.Module, prior: PriorSpec | None = None, *, share_frozen: bool = False) -> BayesianModule:
    """Turns a network into a Pyro model with sample sites for its weights.

    Args:
        net: Any network. It is copied; the original is never changed.
        prior: A Pyro distribution, a rule ``(name, parameter, module) -> prior or None``, or an ordered list of
            ``(pattern, rule or None)`` (:mod:`pyrobnn.priors`). Frozen parameters and those of norm layers stay
            deterministic unless a pattern other than ``"*"`` names them. Choices of structure
            (:mod:`pyrobnn.structure`) have priors of their own. None for the default prior
            (:func:`pyrobnn.priors.default`), under which objectives temper the divergence of guides that have more
            numbers than there are data (:mod:`pyrobnn.objectives.tempering`).
        share_frozen: Frozen parameters are not copied but share the original's memory, as the base of a network with
            adapters should. They must stay frozen; checkpoints leave them out, with a digest
            (:mod:`pyrobnn.model.shared`).

    Returns:
        A :class:`~pyro.nn.PyroModule` called like the network. Inside another PyroModule, as ``self.net``, its
        sites are ``net.<parameter name>``; all are drawn once per outermost call.

    Raises:
        TypeError: If ``net`` is no module, compiled by ``torch.jit`` or a wrapper for several devices, or a rule is of
            the wrong kind.
        ValueError: If a pattern matches nothing, a parameter is matched by no rule, a prior does not fit, or the
            network's weights cannot be replaced by draws (:mod:`pyrobnn.model.network_copy`).
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}.")
    if isinstance(net, StochasticModule):
        raise TypeError("net: it already is a Bayesian network; pass the plain torch network.")
    check_network(net)
    shared = [name for name, parameter in net.named_parameters() if share_frozen and not parameter.requires_grad]
    return BayesianModule(copied(net, share_frozen=share_frozen), prior, shared)


class BayesianModule(StochasticModule):
    """A network whose parameters are sample sites; made by :func:`bayesianize`.

    Attributes:
        parameter_names: For each site, all the names its (possibly tied) parameter has in the network.
        has_default_prior: Whether no prior was stated.
        shared: Names of the network's parameters whose memory is that of the network it was converted from.
    """

    def __init__(self, network: nn.Module, prior: PriorSpec | None = None, shared: Iterable[str] = ()) -> None:
        super().__init__()
        self.has_default_prior = prior is None
        self.add_plain("net", network)
        # Each attribute that holds the parameter, once: functional_call restores wrongly what it replaces twice.
        aliases: dict[int, list[str]] = {}
        for prefix, module in network.named_modules():
            for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                aliases.setdefault(id(parameter), []).append(f"{prefix}.{local}" if prefix else local)
        owned = dict(network.named_parameters())
        self.parameter_names: dict[str, list[str]] = {}
        assignment = assign(network, default() if prior is None else prior)
        check_sites(network, [alias for name in assignment if assignment[name] for alias in aliases[id(owned[name])]])
        for name, assigned in assignment.items():
            if assigned is None:
                continue
            if hasattr(self, name):
                raise ValueError(f"net: the parameter name {name!r} is taken by the Bayesian model; rename it.")
            self.parameter_names[name] = aliases[id(owned[name])]
            self.add_site(name, assigned)
            owned[name].requires_grad_(False)  # a placeholder from now on: draws take its place, guides start there
        self.shared = frozenset(shared) - set(self.parameter_names)

    @property
    def network(self) -> nn.Module:
        """The plain network; parameters that are sites hold the weights it was converted with."""
        return self._plain["net"]

    def values_of(self, network: nn.Module) -> dict[str, Tensor]:
        """The weights of a network of the same architecture as values of the sites, by their full Pyro names.

        Values may share the weights' memory.
        """
        weights, values = dict(network.named_parameters()), {}
        for name, prior in self.site_priors.items():
            for suffix, value in prior.initial(weights[name].detach()).items():
                values[full_name(self, f"{name}.{suffix}" if suffix else name)] = value
        return values

    def initial_values(self) -> dict[str, Tensor]:
        """Where guides start by default: the weights that :attr:`network` holds, in the same memory."""
        return self.values_of(self.network)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Draws the weights (once per outermost call) and runs the network with them."""
        weights = self.sample_weights()
        self.announce_parameters()

        def run(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.network, weights, args, kwargs, tie_weights=False)

        with Substitution(self.network, weights):
            return with_inputs_kept(self.network, args, kwargs, run, weights)

    @pyro_method
    def sample_weights(self) -> dict[str, Tensor]:
        """The network's parameters that are sites, by every name they have in the network."""
        given, weights = self._given(), {}
        for site, names in self.parameter_names.items():
            value = given.get(site)
            if value is None:
                value = getattr(self, site)  # runs pyro.sample
            for name in names:
                weights[name] = value
        return weights

    def _given(self) -> Mapping[str, Tensor]:
        """Values that the active handler has for sites, where it can be asked without a Pyro message a site."""
        handler = direct_handler()
        if handler is None:
            return {}
        priors = {site: rule.conditional() for site, rule in self.site_priors.items() if not rule.auxiliary}
        return handler.answer(full_name(self, ""), priors)

    def names_in(self, values: Mapping[str, Tensor]) -> dict[str, str] | None:
        """Under which name ``values`` holds the weights of each site.

        Args:
            values: A draw of the model's sites.

        Returns:
            Names by site; None if a site is missing, or if a weight is computed from several sites, so that only
            :meth:`sample_weights` knows it.
        """
        prefix, names = full_name(self, ""), {}
        for site in self.parameter_names:
            rule, name = self.site_priors[site], prefix + site
            if name not in values or rule.auxiliary or isinstance(rule.conditional(), Tensor):
                return None
            names[site] = name
        return names

    @contextmanager
    def writing(self) -> Iterator[Callable[[Mapping[str, Tensor]], nn.Module]]:
        """Has the plain network hold draws, one after another, until the block ends.

        No values are copied: storage is exchanged, so the network runs at its own speed, under ``no_grad`` only
        (no gradient flows to the weights).

        Yields:
            A function of weights by site that returns the network, which holds them instead of its placeholders.
        """
        with exclusive():  # other threads would run the network with them
            owned = dict(self.network.named_parameters())
            parameters = {site: owned[site] for site in self.parameter_names}
            kept = {site: parameter.data for site, parameter in parameters.items()}

            def write(weights: Mapping[str, Tensor]) -> nn.Module:
                for site, parameter in parameters.items():
                    parameter.data = weights[site]
                return self.network

            try:
                yield write
            finally:
                write(kept)

    @contextmanager
    def written(self, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The plain network holding ``weights`` until the block ends, as in :meth:`writing`."""
        with self.writing() as write:
            yield write(weights)


def bayesian_modules(model: nn.Module) -> list[BayesianModule]:
    """The converted networks inside ``model``, itself included."""
    return [module for module in model.modules() if isinstance(module, BayesianModule)]


def has_default_prior(model: nn.Module) -> bool:
    """Whether a network in the model was converted without stating a prior."""
    declared = declares_default_prior(model)
    return any(module.has_default_prior for module in bayesian_modules(model)) if declared is None else declared


def buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """``(module, name, buffer)`` of the networks and the user's own modules; priors' constants are left out."""
    constants = {id(module) for prior in model.modules() if isinstance(prior, Prior) for module in prior.modules()}
    for module in model.modules():
        if id(module) not in constants:
            for name, buffer in module.named_buffers(recurse=False):
                yield module, name, buffer


@contextmanager
def frozen_buffers(model: nn.Module) -> Iterator[None]:
    """Replaces the buffers (running statistics) by copies for the block, so that they are unchanged after it.

    Writing the old values back instead would invalidate graphs that have saved the buffers for their backward pass.
    """
    with exclusive():
        copies = [(module, name, buffer.clone()) for module, name, buffer in buffers(model)]
        with exchanged_buffers(copies):
            yield


@contextmanager
def exchanged_buffers(others: Iterable[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Replaces buffers by other tensors ``(module, name, tensor)`` for the block, and restores them after it."""
    with exclusive():  # other threads would see them
        kept = []
        try:
            for module, name, other in others:
                kept.append((module, name, module.get_buffer(name)))
                setattr(module, name, other)
            yield
        finally:
            for module, name, buffer in kept:
                setattr(module, name, buffer)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block, with attention as in training; each module's own mode is restored after it."""
    with exclusive(), modes_restored(model):  # other threads would see it
        model.eval()
        with attention_as_trained():
            yield
