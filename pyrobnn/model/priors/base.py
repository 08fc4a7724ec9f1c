r"""A prior for one parameter tensor, as a module that moves, saves and rebuilds with the model.

A Pyro distribution is a plain Python object: ``model.double()`` or ``model.to("cuda")`` leaves its tensors
behind, and a state dict does not hold them. :class:`FixedPrior` decomposes a distribution into its parameters,
keeps those as buffers, and rebuilds the distribution on demand. Priors with latent or learned
parts (:mod:`pyrobnn.model.priors.hierarchical`) derive from :class:`Prior` directly.
"""

# Pyro declares the attributes of torch distributions on subclasses only.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import operator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.distributions.independent import base_constraint, base_distribution

__all__ = ["FixedPrior", "Prior", "elementwise_support", "is_real"]


class Prior(nn.Module):
    """The prior of one parameter of shape ``shape``.

    Attributes:
        auxiliary: Priors of the latent sites that this prior adds to the parameter (local scales, say), by
            suffix: the site of suffix ``"scale"`` of the parameter ``"fc.weight"`` is ``"fc.weight.scale"``.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.auxiliary: dict[str, FixedPrior] = {}

    def add_auxiliary(self, suffix: str, distribution: dist.Distribution, shape: torch.Size) -> None:
        """Adds a latent site that the parameter's prior depends on."""
        prior = FixedPrior(distribution, shape, name=suffix)
        self.add_module(suffix, prior)
        self.auxiliary[suffix] = prior

    def conditional(self, **auxiliary: Tensor) -> dist.Distribution | Tensor:
        """The parameter given its auxiliary sites: a distribution to sample, or the value itself."""
        raise NotImplementedError

    def normal(self) -> dist.Normal | None:
        """The Normal that the prior is, its scale perhaps learned; None if it is another or depends on other sites."""
        given = None if self.auxiliary else self.conditional()
        base = base_distribution(given) if isinstance(given, dist.Distribution) else None
        return base if isinstance(base, dist.Normal) else None

    def initial(self, value: Tensor) -> dict[str, Tensor]:
        """Values of the sites, by suffix (``""`` the parameter's own), at which the parameter is ``value``."""
        return {"": value}

    def spec(self) -> dict[str, Any]:
        """A JSON-able description from which :func:`pyrobnn.priors.from_spec` rebuilds this prior.

        Tensors are left to the state dict.
        """
        return {"prior": type(self).__name__, "shape": list(self.shape), **self._config()}

    def _config(self) -> dict[str, Any]:
        return {}


@explained
class FixedPrior(Prior):
    """A prior whose distribution does not depend on anything that is inferred or learned.

    Args:
        distribution: A continuous Pyro distribution whose shape broadcasts to ``shape``.
        shape: The parameter's shape; all of it becomes the event shape.
        name: The parameter's name, for error messages.

    Raises:
        TypeError: If ``distribution`` is no Pyro distribution or one that cannot be decomposed.
        ValueError: If its support is discrete or its shape does not broadcast to ``shape``.
    """

    def __init__(self, distribution: dist.Distribution, shape: torch.Size, name: str = "parameter") -> None:
        super().__init__(shape)
        if not isinstance(distribution, dist.Distribution):
            raise TypeError(
                f"prior of {name!r}: expected a Pyro distribution (from pyro.distributions), got "
                f"{type(distribution).__name__}."
            )
        if distribution.support.is_discrete:
            raise ValueError(
                f"prior of {name!r}: {type(distribution).__name__} has a discrete support, but a network "
                f"parameter is continuous; choose a continuous prior such as Normal, Laplace or StudentT."
            )
        flat = base_distribution(distribution)
        full = flat.batch_shape + flat.event_shape
        try:
            torch.empty(()).expand(full).expand(self.shape)  # torch.broadcast_shapes imports sympy: 0.4 s
            fits = not flat.event_shape or full == self.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"prior of {name!r}: its shape {tuple(full)} does not broadcast to the parameter's shape "
                f"{tuple(self.shape)}; give a scalar prior or one of the parameter's own shape."
            )
        self._event_shape = flat.event_shape
        self._template = _as_template(flat, self, "", name)
        self._built: dist.Distribution | None = None
        self._built_from: tuple[Tensor, ...] = ()
        self.register_load_state_dict_post_hook(_forget_built)
        self.conditional()

    def conditional(self, **auxiliary: Tensor) -> dist.Distribution:
        """The distribution; the same object at each call until a buffer is replaced (moved, cast, loaded)."""
        buffers: Any = self._buffers.values()
        if self._built is None or not all(map(operator.is_, buffers, self._built_from)):
            built = _built_from_template(self._template, self, "")
            batch = self.shape[: len(self.shape) - len(self._event_shape)]
            if built.batch_shape != batch:
                built = built.expand(batch)
            self._built = built.to_event(len(batch)) if batch else built
            self._built_from = tuple(buffers)
        return self._built

    @property
    def distribution(self) -> dist.Distribution:
        """The distribution over the whole parameter."""
        return self.conditional()

    def extra_repr(self) -> str:
        """One line: the family and its parameters, tensors by shape."""
        return _summary(self._template, self, "")

    def _config(self) -> dict[str, Any]:
        return {"distribution": self._template, "event_shape": list(self._event_shape)}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> FixedPrior:
        """Rebuilds the prior with placeholder tensors, to be filled by ``load_state_dict``."""
        prior = cls.__new__(cls)
        Prior.__init__(prior, torch.Size(spec["shape"]))
        prior._event_shape = torch.Size(spec["event_shape"])
        prior._template = spec["distribution"]
        prior._built, prior._built_from = None, ()
        _placeholders(prior._template, prior, "")
        prior.register_load_state_dict_post_hook(_forget_built)
        return prior


def _forget_built(prior: Any, _: Any) -> None:
    prior._built = None


def _parameter_names(distribution: dist.Distribution) -> list[str]:
    """Constructor arguments; of several parametrizations of one thing only one may be passed."""
    names = list(distribution.arg_constraints)  # of the instance: Uniform has a property
    for kept, dropped in (("probs", ("logits",)), ("scale_tril", ("covariance_matrix", "precision_matrix"))):
        if kept in names:
            names = [name for name in names if name not in dropped]
    return names


def _as_template(distribution: dist.Distribution, owner: nn.Module, path: str, name: str) -> dict[str, Any]:
    """Registers the distribution's tensors as buffers of ``owner``; returns the JSON-able rest."""
    distribution = base_distribution(distribution)
    family = type(distribution).__name__
    if isinstance(distribution, dist.MixtureSameFamily):
        mixture, component = distribution.mixture_distribution, distribution.component_distribution
        return {
            "family": "MixtureSameFamily",
            "mixture": _as_template(mixture, owner, f"{path}mixture_", name),
            "component": _as_template(component, owner, f"{path}component_", name),
        }
    if getattr(dist, family, None) is not type(distribution) or not distribution.arg_constraints:
        raise TypeError(
            f"prior of {name!r}: {family} cannot be decomposed into parameters, which moving and saving the "
            f"model needs; use a family of pyro.distributions, or write the site in your own PyroModule."
        )
    shapes: dict[str, list[int]] = {}
    for parameter in _parameter_names(distribution):
        tensor = torch.as_tensor(getattr(distribution, parameter)).detach()
        # An expanded constant is stored as the one number it is.
        constant = tensor.numel() > 0 and all(
            s == 0 or n == 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)
        )
        if constant and parameter != "probs" and not distribution.event_shape:
            tensor = tensor.reshape(-1)[0]
        owner.register_buffer(path + parameter, tensor.clone().contiguous())
        shapes[parameter] = list(tensor.shape)
    return {"family": family, "parameters": shapes}


def _built_from_template(template: dict[str, Any], owner: nn.Module, path: str) -> dist.Distribution:
    if template["family"] == "MixtureSameFamily":
        mixture = _built_from_template(template["mixture"], owner, f"{path}mixture_")
        component = _built_from_template(template["component"], owner, f"{path}component_")
        return dist.MixtureSameFamily(mixture, component)
    arguments = {name: owner.get_buffer(path + name) for name in template["parameters"]}
    return getattr(dist, template["family"])(**arguments)


def _placeholders(template: dict[str, Any], owner: nn.Module, path: str) -> None:
    if template["family"] == "MixtureSameFamily":
        _placeholders(template["mixture"], owner, f"{path}mixture_")
        _placeholders(template["component"], owner, f"{path}component_")
        return
    for name, shape in template["parameters"].items():
        owner.register_buffer(path + name, torch.ones(shape))


def _summary(template: dict[str, Any], owner: nn.Module, path: str) -> str:
    if template["family"] == "MixtureSameFamily":
        return f"Mixture({_summary(template['component'], owner, f'{path}component_')})"
    parts = []
    for name in template["parameters"]:
        buffer = owner.get_buffer(path + name)
        parts.append(f"{buffer.item():.4g}" if buffer.numel() == 1 else f"{name}{list(buffer.shape)}")
    return f"{template['family']}({', '.join(parts)})"


def is_positive(distribution: dist.Distribution) -> bool:
    """Whether the distribution has support on positive numbers, so that it can be a scale's prior."""
    lower = getattr(elementwise_support(distribution), "lower_bound", None)
    return lower is not None and bool((torch.as_tensor(lower) >= 0).all())


def elementwise_support(distribution: dist.Distribution) -> constraints.Constraint:
    """The distribution's support, without the wrappers for event dimensions and mixtures."""
    return base_constraint(distribution.support)


def is_real(distribution: dist.Distribution) -> bool:
    """Whether every element of the distribution's support is the whole real line."""
    return elementwise_support(distribution) is constraints.real
