"""The posterior predictive as attacks see it: losses, gradients, features, and a count of what they cost."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.gradient_modes import refuse_inference_tensors
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.guides.base import Guide
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.prediction.differentiability import module_of_zero_gradient
from pyrobnn.prediction.draws import PinnedDraws, check_posterior
from pyrobnn.prediction.input_gradients import pooled_gradient, pooled_value
from pyrobnn.prediction.rows import Part
from pyrobnn.prediction.runners import Runner, model_outputs
from pyrobnn.robustness.attacks.losses import Loss, network_run

__all__ = ["GradientMaskingWarning", "QueriesUsedUpError", "Target", "stream"]


class QueriesUsedUpError(Exception):
    """An attack asked for more evaluations than it may; :class:`~pyrobnn.robustness.Attack` ends the search then."""


class GradientMaskingWarning(UserWarning):
    """Gradients say less than they seem to: what an attack finds is no bound on what an attacker can do."""


class Target:
    """The mean over K draws of a posterior, which attacks evaluate and differentiate.

    Args:
        model: The model.
        guide: A guide, or draws ``{site: [K, *site shape]}``.
        num_samples: Number K of draws.
        draws: ``"pinned"``: the same K draws in all evaluations; ``"fresh"``: other draws for each gradient.
        likelihood: What the outputs mean; the model's own if None.
        batch_size: Rows that the network sees at a time.
        max_bytes: Budget for draws.
        max_queries: How often an input may be evaluated; None for no limit.
        seed: Fixes the draws.

    Attributes:
        likelihood: What the outputs mean.
        is_limited: Whether ``max_queries`` holds; the comparison at the end is beyond it.
        queries: How often the posterior mean was evaluated since :meth:`restart`, with or without a gradient. One query
            is K forward passes of the network, and with a gradient K backward passes, too.

    Raises:
        TypeError: If the posterior or the likelihood is of the wrong kind.
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: Any,
        *,
        num_samples: int,
        draws: str,
        likelihood: Likelihood | None,
        batch_size: int | None,
        max_bytes: int,
        max_queries: int | None,
        seed: int,
    ) -> None:
        check_positive_int("max_bytes", max_bytes)
        if max_queries is not None:
            check_positive_int("max_queries", max_queries)
        check_int("seed", seed, 0)
        if not isinstance(draws, str) or draws not in ("pinned", "fresh"):
            raise ValueError(f"draws: expected 'pinned' or 'fresh', got {draws!r}.")
        refuse_inference_tensors(model=model)
        check_posterior(model, guide)
        if draws == "fresh" and not isinstance(guide, Guide):
            raise ValueError(
                "draws: 'fresh' ones need a guide to make them; given draws are always the same ('pinned')."
            )
        self.runner = Runner(model, likelihood, "loop", max_bytes, batch_size)  # knows the likelihood and the rows
        self.model, self.likelihood, self.device = model, self.runner.likelihood, self.runner.device
        self.is_fresh, self.max_queries, self.seed = draws == "fresh", max_queries, seed
        self._fresh = functools.partial(PinnedDraws, guide, num_samples, max_bytes, replayed=False)
        self._draws = PinnedDraws(guide, num_samples, max_bytes, seed=seed)
        self.num_samples = num_samples
        self.restart()

    def restart(self) -> None:
        """Counts queries from 0 up to the limit, and fresh draws from their first."""
        self.queries, self._gradients, self.is_limited = 0, 0, True

    def parts(self, x: Tensor) -> list[Part]:
        """The inputs, cut where rows do not see each other."""
        with torch.no_grad():
            first = Draws.of(next(iter(self._draws))).at(0)
            return self.runner.cutter.parts(x, functools.partial(self.runner.outputs, first))

    def loss(self, x: Tensor, y: Tensor | None, loss: Loss, rows: Tensor | None = None) -> Tensor:
        """The loss of each input ``[N]``, under the pinned draws.

        Args:
            x: Inputs ``[N, ...]``.
            y: Their targets, None for losses without.
            loss: The loss.
            rows: Which inputs of the batch these are, for losses that remember something of each input.

        Raises:
            QueriesUsedUpError: If no evaluation is left.
        """
        self._count()
        run = functools.partial(self._summary, y, loss, rows)
        with self._validated_once():
            return pooled_value(self.model, self._draws, x, run, lambda pooled: loss.value(pooled, y))

    def loss_and_gradient(
        self, x: Tensor, y: Tensor | None, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of each input ``[N]`` and its gradient ``[N, ...]``, with the graph of one draw at a time.

        Raises:
            QueriesUsedUpError: If no evaluation is left.
            ValueError: If the network is not differentiable, or the gradient not finite.
        """
        self._count()
        run = functools.partial(self._summary, y, loss, rows)
        self._gradients += 1
        draws = self._fresh(seed=stream(self.seed, 1, self._gradients)) if self.is_fresh else self._draws
        with self._validated_once():
            found = pooled_gradient(self.model, draws, x, run, lambda pooled: loss.value(pooled, y))
        if self._gradients == 1 and not bool(found[1].any()):
            self._warn_of_flatness(x, run)
        return found

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Log mean probabilities of the classes ``[N, ..., C]``, under the pinned draws.

        Raises:
            QueriesUsedUpError: If no evaluation is left.
            TypeError: If the likelihood has no classes.
        """
        likelihood = self.likelihood
        if not isinstance(likelihood, ClassLikelihood):
            raise TypeError(
                f"likelihood: class probabilities are needed, but it is {type(likelihood).__name__}; use a likelihood "
                "of classes, such as Categorical."
            )
        self._count()
        return pooled_value(
            self.model,
            self._draws,
            x,
            lambda outputs, k: likelihood.log_probabilities(network_run(outputs, likelihood, None, k).outputs),
            lambda pooled: pooled,
        )

    def features(self, x: Tensor, layer: str) -> Iterator[Tensor]:
        """The outputs ``[N, ...]`` of a layer under each pinned draw, without gradients.

        Args:
            x: Inputs ``[N, ...]``.
            layer: The layer's name, as in ``model.named_modules()`` or in that of its network.

        Raises:
            QueriesUsedUpError: If no evaluation is left.
            ValueError: If there is no such layer, or its output is no tensor.
        """
        module = self.layer(layer)
        self._count()
        kept: list[Any] = []
        handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
        try:
            for chunk in self._draws:
                several = Draws.of(chunk)
                for index in range(len(next(iter(several.values())))):
                    kept.clear()
                    with torch.no_grad():
                        self.runner.outputs(several.at(index), x.clone())
                    yield tensor_of(kept, layer)
        finally:
            handle.remove()

    def layer(self, name: str) -> nn.Module:
        """A module of the model by its name.

        Raises:
            ValueError: If there is none; the names that end so are listed.
        """
        modules = dict(self.model.named_modules())
        found = [key for key in modules if name and (key == name or key.endswith(f".{name}"))]
        if not found:
            known = [key for key, module in modules.items() if key and not any(module.children())]
            raise ValueError(f"layer: the network has no module {name!r}; it has {known}.")
        return modules[min(found, key=len)]

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs under the values that are substituted now."""
        return model_outputs(self.model, x)

    def _warn_of_flatness(self, x: Tensor, run: Callable[[Tensor, int], Tensor]) -> None:
        """Names the module whose derivative is 0 everywhere, such as one that rounds; saturation names none."""
        first = Draws.of(next(iter(self._draws))).at(0)
        name = module_of_zero_gradient(self.model, lambda leaf: run(self.runner.outputs(first, leaf), 0).sum(), x)
        if name is not None:
            warnings.warn(
                f"model: the derivative of its module {name} is 0 for all inputs, so that attacks by gradients cannot "
                "move; use one without gradients, such as SPSA.",
                GradientMaskingWarning,
                stacklevel=3,
            )

    def _validated_once(self) -> contextlib.AbstractContextManager[None]:
        """Distributions check their arguments in the first evaluation of some inputs, as in the first epoch of fit."""
        return contextlib.nullcontext() if self.queries <= 1 else validation_enabled(False)

    def _count(self) -> None:
        if self.is_limited and self.max_queries is not None and self.queries >= self.max_queries:
            raise QueriesUsedUpError
        self.queries += 1

    def _summary(self, y: Tensor | None, loss: Loss, rows: Tensor | None, outputs: Tensor, draw: int) -> Tensor:
        return loss.summary(network_run(outputs, self.likelihood, y, draw, rows))


def tensor_of(kept: list[Any], layer: str) -> Tensor:
    """The last output of a layer that a hook kept.

    Raises:
        ValueError: If the layer was not run, or returned no tensor.
    """
    if not kept or not isinstance(kept[-1], Tensor):
        got = type(kept[-1]).__name__ if kept else "no call of it"
        raise ValueError(f"layer: expected a module that returns one tensor, got {got} of {layer!r}.")
    return kept[-1]


def stream(seed: int, *keys: int) -> int:
    """A seed of a stream of its own: starts, fresh draws and pinned draws share no random numbers."""
    return int(np.random.SeedSequence([seed, *keys]).generate_state(1, np.uint64)[0] >> np.uint64(1))
