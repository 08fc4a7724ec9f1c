"""A PyroModule that owns sites with priors: the common part of networks and likelihoods.

Plain :class:`~pyro.nn.PyroModule` has three problems for networks: it writes every parameter into a global store under
a name that two networks may share, it does not move prior tensors with the module, and its latent sites are found only
by a run on data. :class:`StochasticModule` keeps parameters local and priors in buffers, and its method
:meth:`~StochasticModule.sample_latents` draws all latent sites without data.
"""

from __future__ import annotations

import torch
from pyro.nn import PyroModule, PyroSample, pyro_method
from torch import Tensor, nn

from pyrobnn.core.pyro_compat import announce_parameter, full_name, is_handler_active
from pyrobnn.model.priors import Prior
from pyrobnn.model.substitution import SubstituteMessenger, direct_handler

__all__ = ["StochasticModule", "at_stored_values", "stored_values"]


class _ReadPrior:
    """The argument of a PyroSample: from the module that owns a site to the site's prior."""

    def __init__(self, name: str, suffix: str | None = None) -> None:
        self.name = name
        self.suffix = suffix

    def __call__(self, owner: StochasticModule) -> object:
        prior = owner.site_priors[self.name]
        if self.suffix is not None:
            return prior.auxiliary[self.suffix].conditional()
        auxiliary = {s: getattr(owner, f"{self.name}.{s}") for s in prior.auxiliary}
        return prior.conditional(**auxiliary)


class StochasticModule(PyroModule):
    """A PyroModule whose sites carry :class:`~pyrobnn.priors.Prior` modules and whose parameters stay local.

    Attributes:
        site_priors: The prior of each site, by the name it has inside this module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.site_priors: dict[str, Prior] = {}
        self._plain: dict[str, nn.Module] = {}
        self._initial: dict[str, Tensor] = {}
        self._slots: list[tuple[str, nn.Module, str]] | None = None

    def add_plain(self, name: str, module: nn.Module) -> None:
        """Registers a submodule that Pyro's handlers do not see.

        Reading a plain module as an attribute of a PyroModule would enter all its parameters in the global
        store, so the module is kept a second time where attribute access does not go through Pyro.
        """
        self.add_module(name, module)
        self._plain[name] = module

    def add_site(self, name: str, prior: Prior, initial: Tensor | None = None) -> None:
        """Declares the latent site ``name``; ``initial`` is where guides start it by default."""
        self.site_priors[name] = prior
        self.add_plain(f"prior:{name.replace('.', '/')}", prior)
        for suffix in prior.auxiliary:
            setattr(self, f"{name}.{suffix}", PyroSample(_ReadPrior(name, suffix)))  # type: ignore[arg-type]
        setattr(self, name, PyroSample(_ReadPrior(name)))  # type: ignore[arg-type]
        if initial is not None:
            for suffix, value in prior.initial(initial.detach()).items():
                self._initial[f"{name}.{suffix}" if suffix else name] = value

    @pyro_method
    def sample_latents(self) -> dict[str, Tensor]:
        """Draws every site of this module, by its name inside the module; no data is needed."""
        return {name: getattr(self, name) for name in self.site_priors}

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of latent sites by their full Pyro names, for guides."""
        return {full_name(self, name): value for name, value in self._initial.items()}

    def announce_parameters(self) -> None:
        """Sends a param message for each trainable parameter to active Pyro handlers, as Pyro's ``SVI`` expects."""
        if not is_handler_active() or direct_handler() is not None:  # which ignores parameters
            return
        if self._slots is None:  # traversing the module tree costs more than a small network's step
            owners = {
                f"{prefix}.{local}" if prefix else local: (module, local)
                for prefix, module in self.named_modules()
                for local, _ in module.named_parameters(recurse=False)
            }
            self._slots = [(name, *owners[name]) for name, _ in self.named_parameters()]
        for name, owner, local in self._slots:
            parameter = owner._parameters[local]  # read anew: it may have been frozen or replaced
            if parameter is not None and parameter.requires_grad:
                announce_parameter(full_name(self, name), parameter)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Starting values are neither parameters nor buffers (they need not be saved), but follow the device.
        super()._apply(fn, recurse)
        with torch.no_grad():
            self._initial = {name: fn(value) for name, value in self._initial.items()}
        return self


def stored_values(model: object) -> dict[str, Tensor]:
    """Where the sites of all these modules in a model start, such as the weights that networks were converted with."""
    stored: dict[str, Tensor] = {}
    if isinstance(model, nn.Module):
        for module in model.modules():
            if isinstance(module, StochasticModule):
                stored.update(module.initial_values())
    return stored


def at_stored_values(model: object) -> SubstituteMessenger:
    """A handler under which the sites have the values that :func:`stored_values` returns; others are drawn."""
    return SubstituteMessenger(stored_values(model))
