r"""The potential energy of a model given data, on one flat unconstrained vector.

.. math::  U(q) = -\log p(D, t(q)) - \log \left|\det \frac{\partial t}{\partial q}\right|, \qquad q \in \mathbb{R}^d,

where :math:`t` takes the flat vector to the latent sites' values. It is a pure function of :math:`q`, so ``torch.func``
transforms apply. For speed it is recorded once, with its gradient, as a graph of plain tensor operations
(:mod:`pyrobnn.sampling.hmc.tracing`): evaluations then cost no Pyro, no autograd and no Python of the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.pyro_compat import unvalidated
from pyrobnn.model.bayesianize import buffers, frozen_buffers
from pyrobnn.model.declarations import example_if_needed
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.initialization import Init, initial_values
from pyrobnn.model.layout import Layout
from pyrobnn.model.priors.base import elementwise_support
from pyrobnn.model.substitution import SubstituteMessenger, summed_score
from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.sampling.hmc.tracing import trace
from pyrobnn.sampling.initialization import check_start
from pyrobnn.steps.normal_prior import FlatNormalPrior
from pyrobnn.training.running_statistics import BATCH_NORMS

__all__ = ["Potential", "ValueAndGrad"]

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]


class Potential:
    """``-log p(data, sites)`` and the transforms' log Jacobians, as a function of one flat vector ``[d]``.

    Args:
        model: The Pyro model.
        args: Its arguments: all of the data, for instance ``(x, y)``.

    Attributes:
        layout: Where each site lies in the flat vector (:class:`~pyrobnn.guides.Guide` without a distribution).
        num_latents: Length d of the flat vector.

    Raises:
        TypeError: If the model is no Pyro model.
        ValueError: If a site is discrete, lies in a subsampled plate, or has a support that depends on other sites; if
            the data are a part of the data set; if BatchNorm is in training mode, or the model's log density is random,
            or running it changes a buffer.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...] = ()) -> None:
        self.model, self.args = model, args
        self._module = model if isinstance(model, nn.Module) else nn.Module()
        for name, module in self._module.named_modules():
            if isinstance(module, BATCH_NORMS) and module.training:
                raise ValueError(
                    f"model: the BatchNorm layer {name!r} is in training mode, where the data of a batch depend on "
                    "each other and there is no posterior to sample; call model.eval() to use its running statistics."
                )
        self.layout = Layout.of(model, example=example_if_needed(model, args))
        self.num_latents = self.layout.size
        self._flat_prior: FlatNormalPrior | None = None
        self._recorded: dict[Any, ValueAndGrad] = {}
        self._check()

    def __call__(self, flat: Tensor) -> Tensor:
        """The potential of one flat vector ``[d]``, a scalar in nats."""
        total: Tensor | float = 0.0
        for term in self._terms(flat):
            total = total - term
        return torch.as_tensor(total)

    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """The sites' values ``{site: [..., *site shape]}`` of flat vectors ``[..., d]``."""
        return self.layout.constrain(self.layout.split(flat))

    def start(self, init: Init = None) -> Tensor:
        """A flat vector to start from.

        Args:
            init: As for guides: None for the weights the network came with, ``"prior"`` for a draw, another network, a
                dict of site values, or a function ``(site name, prior) -> value``.

        Raises:
            TypeError: If ``init`` is of another kind.
            ValueError: If a value has the wrong shape or lies outside its site's support.
        """
        return self.layout.join(initial_values(self.model, self.layout, init))

    def check_start(self, flat: Tensor) -> None:
        """Refuses a start from which no sampler can move.

        Args:
            flat: Flat vectors ``[chains, d]``.

        Raises:
            NonFiniteLossError: If the potential or its gradient is NaN or infinite in a chain; it names the site.
        """
        values, gradients = self.value_and_grad(flat)
        is_bad = ~(values.isfinite() & gradients.isfinite().all(-1))
        if not bool(is_bad.any()):
            return
        check_start(self.model, self.layout, flat, self.args)
        chain = int(is_bad.int().argmax())
        slopes = self.layout.split(gradients[chain])
        non_finite = [f"site {name!r}" for name, slope in slopes.items() if not bool(slope.isfinite().all())]
        raise NonFiniteLossError(
            f"the potential is {float(values[chain])} where chain {chain} starts, and its gradient is not finite for "
            f"{', '.join(non_finite) or 'no site'}; start elsewhere with init=."
        )

    # ------------------------------------------------------------------------------------ values and gradients

    def value_and_grad(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Potentials and their gradients, without a graph.

        Args:
            flat: One flat vector ``[d]``, or one for each chain ``[chains, d]``.

        Returns:
            The potential, a scalar or ``[chains]``, and its gradient, of the shape of ``flat``.
        """
        return self.recorded(flat)(flat)

    def recorded(self, like: Tensor) -> ValueAndGrad:
        """:meth:`value_and_grad` for flat vectors of one shape, dtype and device; a graph where one can be recorded."""
        key = like.shape, like.dtype, like.device
        if key not in self._recorded:
            self._recorded[key] = self._record(like.detach()) or self._by_autograd
        return self._recorded[key]

    def is_recorded(self, like: Tensor) -> bool:
        """Whether :meth:`recorded` is a graph for such flat vectors."""
        return isinstance(self.recorded(like), torch.fx.GraphModule)

    def graph(self, like: Tensor, decompositions: Mapping[Any, Callable[..., Any]]) -> torch.fx.GraphModule | None:
        """Value and gradient of one flat vector ``[d]`` as a graph for a compiler; None if none can be recorded.

        Args:
            like: A flat vector of that dtype and device.
            decompositions: What to record in place of operators (:func:`pyrobnn.sampling.hmc.tracing.trace`).
        """
        with frozen_buffers(self._module):
            return trace(self._differentiated, like.detach(), decompositions=decompositions)

    def _record(self, like: Tensor) -> ValueAndGrad | None:
        one_chain = like.dim() == 1
        with frozen_buffers(self._module):
            single = trace(self._differentiated, like if one_chain else like[0], vectorizable=not one_chain)
        return single if single is None or one_chain else trace(torch.func.vmap(single), like)

    def _differentiated(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of one flat vector, by autograd; ``torch.func.grad`` would import torch's compiler."""
        with torch.enable_grad():
            value = self(flat.requires_grad_())
            if not value.requires_grad:
                return value, torch.zeros_like(flat)
            return value.detach(), torch.autograd.grad(value, flat)[0]

    def _by_autograd(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """For models that cannot be recorded, such as those that branch on values: one chain after another."""
        rows = flat.detach().reshape(-1, self.num_latents)
        values, gradients = [], []
        with torch.enable_grad(), frozen_buffers(self._module):
            for row in rows:
                leaf = row.clone().requires_grad_()
                value = self(leaf)
                gradients.append(torch.autograd.grad(value, leaf)[0])
                values.append(value.detach())
        return torch.stack(values).reshape(flat.shape[:-1]), torch.stack(gradients).reshape(flat.shape)

    # -------------------------------------------------------------------------------------------------- terms

    def _terms(self, flat: Tensor) -> list[Tensor]:
        """The parts of ``-U``."""
        unconstrained = self.layout.split(flat)
        values = self.layout.constrain(unconstrained)
        prior = self._flat_prior
        # Validation needs the values of tensors, which transforms and graphs do not provide.
        covered, terms = frozenset() if prior is None else prior.names, []
        with validation_enabled(False):
            with SubstituteMessenger(values) as run:
                self.model(*self.args)
            for message in (*run.latent, *run.observed):
                name = message["name"]
                if name in covered:
                    continue
                term = summed_score(unvalidated(message["fn"]).log_prob(message["value"]), message)
                if not message["is_observed"]:
                    term = term + self.layout[name].log_jacobian(unconstrained[name], values[name], 0)
                terms.append(term)
        windows = () if prior is None else prior.windows
        return terms + [-normal.half_squares(flat[normal.window]) - normal.log_normalizer for normal in windows]

    # ------------------------------------------------------------------------------------------------- checks

    def _check(self) -> None:
        """Runs the model at two points: what it may not do shows there."""
        start = self.start()
        with torch.no_grad(), random_state.preserved(torch.device("cpu")):
            elsewhere = torch.nan_to_num(start + 0.1 * torch.randn_like(start))
            first, second = self._run(start), self._run(elsewhere)
            for message in (*first.latent, *first.observed):
                self._check_plates(message)
            for message, other in zip(first.latent, second.latent, strict=False):
                self._check_latent(message, other)
            with frozen_buffers(self._module):
                values = [self(start) for _ in range(2)]
        if bool(values[0].isfinite()) and not torch.equal(values[0], values[1]):
            raise ValueError(
                "model: its log density is random, because something in it draws noise (dropout in training mode?); "
                "call model.eval(), or make the noise a sample site."
            )
        # A fixed prior seen as the very object the layout found needs no run of the model to be scored.
        shown = prior_terms(first.latent)
        same = {name: term for name, term in shown.items() if term.distribution is self.layout[name].prior}
        self._flat_prior = FlatNormalPrior(self.layout, same, start)

    def _run(self, flat: Tensor) -> SubstituteMessenger:
        before = [(module, name, buffer) for module, name, buffer in buffers(self._module)]
        with frozen_buffers(self._module), SubstituteMessenger(self.constrain(flat)) as run:
            self.model(*self.args)
            changed = [name for module, name, old in before if not _same(module.get_buffer(name), old)]
        if changed:
            raise ValueError(
                f"model: running it changes the buffer {changed[0]!r}, so that its log density is not a function of "
                "the sites alone; call model.eval()."
            )
        return run

    def _check_plates(self, message: Any) -> None:
        for frame in message["cond_indep_stack"]:
            full = frame.full_size or frame.size
            if frame.size != full:
                raise ValueError(
                    f"site {message['name']!r}: it lies in the plate {frame.name!r} of size {full}, of which "
                    f"{frame.size} were given; HMC and NUTS need all of the data at once, so pass the whole data set, "
                    "or sample from minibatches with SGLD or SGHMC."
                )

    def _check_latent(self, message: Any, other: Any) -> None:
        name = message["name"]
        if name not in self.layout:
            raise ValueError(f"site {name!r}: it appears only in some runs of the model; sites must be fixed.")
        here, there = (elementwise_support(node["fn"]) for node in (message, other))
        for bound in ("lower_bound", "upper_bound"):
            if not _same(getattr(here, bound, None), getattr(there, bound, None)):
                raise ValueError(
                    f"site {name!r}: its support depends on other sites, so no one transform leads there; write it as "
                    "a transform of a site whose support is fixed."
                )


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
