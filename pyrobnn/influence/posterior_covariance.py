r"""Bayesian influence: the covariance of losses under a posterior, without a Hessian.

For the posterior :math:`q(\theta) \propto p(\theta) \exp(-\sum_n \omega_n L(z_n))` the derivative of a test datum's
expected loss is a covariance,

.. math::  I_{up} = \frac{d\, E_q[L(z_t)]}{d\omega_n} = -\mathrm{Cov}_q\big(L(z_t), L(z_n)\big), \qquad
           I_{pert} = -\omega_n \mathrm{Cov}_q\big(L(z_t), \nabla_x L(z_n)\big).

Where the posterior is a narrow Gaussian, :math:`N(\hat\theta, H^{-1})`, it is the classical form. Kreer et al.,
*Bayesian influence functions for Hessian-free data attribution*, 2025, arXiv:2509.26544. For an approximate posterior
it is a statement about that approximation. K draws estimate it with standard errors (:meth:`standard_error`); draws of
Markov chains are correlated, which batch means take into account.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.guides.base import Guide
from pyrobnn.influence.base import Influence
from pyrobnn.influence.input_gradients import refuse_constant_inputs
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.draws import PinnedDraws, check_posterior
from pyrobnn.prediction.runners import Runner

__all__ = ["PosteriorCovariance"]

_DRAWS = 1000


@explained
class PosteriorCovariance(Influence):
    """The covariance of losses under K draws, the same in every call.

    Args:
        model: The model that was fitted.
        guide: A guide of any family but a point, or draws ``{site: [K, *site shape]}`` that are independent. Of
            mixtures of points (ensembles, chains) each point is a draw.
        loader: Training data in a fixed order.
        num_samples: Number K of draws; None takes all points of a mixture or all draws that are given, else 1,000.
        seed: Fixes the draws, and leaves torch's random state alone.
        batch: How to read batches.
        max_bytes: Budget for draws and activations. Beside it the losses of K draws at N rows are kept, 8 K N bytes.

    Attributes:
        num_samples: K.
        losses: Losses of the training rows under each draw, ``[K, N]``, in double precision.

    Raises:
        TypeError: If the model is no :class:`~pyrobnn.SupervisedModel`, or the guide neither a guide nor draws.
        ValueError: If the guide is a point, or there are fewer than two draws; or as :class:`Influence` says.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide | Mapping[str, Tensor],
        loader: Iterable[Any],
        *,
        num_samples: int | None = None,
        seed: int = 0,
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        check_int("seed", seed, 0)
        check_positive_int("max_bytes", max_bytes)
        super().__init__(model, loader, batch)
        check_posterior(model, guide)
        posterior, count, self._chain = _as_draws(guide, num_samples)
        self.num_samples = count
        self.runner = Runner(model, None, "auto", max_bytes)
        self.draws = PinnedDraws(posterior, count, max_bytes, seed=seed)
        self.losses = torch.cat([self._losses(own) for own in self.data.batches], 1)

    def upweighting(self, x: Any, y: Any) -> Tensor:
        """``I_up [T, N]`` of expected losses, as :meth:`Influence.upweighting` says."""
        test = _centered(self._losses(self._test(x, y)))
        found = test.T @ _centered(self.losses) / (self.num_samples - 1)
        return -found.to(next(self.model.parameters()).dtype)

    def standard_error(self, x: Any, y: Any) -> Tensor:
        """The standard error of each entry of :meth:`upweighting`, ``[T, N]``, that K draws leave.

        Args:
            x: Inputs of T test data.
            y: Their targets.
        """
        test, own = _centered(self._losses(self._test(x, y))), _centered(self.losses)
        if self._chain is None:
            mean = test.T @ own / self.num_samples
            variance = test.square().T @ own.square() / self.num_samples - mean.square()
            error = (variance.clamp_min(0.0) / (self.num_samples - 1)).sqrt()
        else:
            means = torch.stack([test[part].T @ own[part] / len(part) for part in _segments(self._chain)])
            error = means.std(0) / len(means) ** 0.5
        return error.to(next(self.model.parameters()).dtype)

    def perturbation(self, x: Any, y: Any, rows: Sequence[int]) -> Tensor:
        """``I_pert [T, R, *input shape]`` of expected losses, as :meth:`Influence.perturbation` says."""
        moved, test = self._differentiable(rows), _centered(self._losses(self._test(x, y)))
        total = torch.zeros(test.shape[1], moved.inputs.numel(), dtype=torch.float64, device=test.device)
        with gradients_enabled(), self.runner.ready():
            for index, draw in enumerate(self._each_draw()):
                slope = self._input_gradient(draw, moved).double().flatten()
                total += test[index].unsqueeze(1) * slope
        weight = self.data.weight[self.data.check_rows(rows)]
        found = total.reshape(-1, *moved.inputs.shape) / (self.num_samples - 1)
        return -(found * weight.reshape(-1, *(1,) * (moved.inputs.dim() - 1))).to(moved.inputs)

    def self_influence(self) -> Tensor:
        """``ω Var_q(L)`` of each training row ``[N]``, as :meth:`Influence.self_influence` says."""
        return (self.losses.var(0) * self.data.weight).to(next(self.model.parameters()).dtype)

    @torch.no_grad()
    def _losses(self, batch: Batch) -> Tensor:
        """Losses of a batch's rows under each draw, ``[K, B]``."""
        likelihood = self.model.likelihood

        def summarize(outputs: Tensor) -> dict[str, Tensor]:
            return {"loss": -likelihood(outputs).log_prob(batch.targets).double()}

        found = []
        with self.runner.ready():
            for chunk in self.draws:
                found += [part["loss"] for part in self.runner.summaries(chunk, batch.inputs, summarize)]
        losses = torch.cat(found)
        if not bool(losses.isfinite().all()):
            draw, row = losses.isfinite().logical_not().nonzero()[0].tolist()
            raise ValueError(
                f"guide: under draw {draw} the loss of row {row} is not finite, so there is no covariance."
            )
        return losses

    def _each_draw(self) -> Iterator[Draws]:
        for chunk in self.draws:
            several = Draws.of(chunk)
            for index in range(len(next(iter(several.values())))):
                yield several.at(index)

    def _input_gradient(self, draw: Draws, batch: Batch) -> Tensor:
        leaf = batch.inputs.detach().clone().requires_grad_()
        with torch.enable_grad(), installed_buffers(self.model, draw.buffers), SubstituteMessenger(draw):
            loss = -self.model.likelihood(self.model.predictive(leaf)).log_prob(batch.targets).sum()
            if not loss.requires_grad:
                loss = loss + 0.0 * torch.zeros((), requires_grad=True)  # nothing before it had a graph
            refuse_constant_inputs(loss, leaf)
            return torch.autograd.grad(loss, leaf)[0]


def _as_draws(posterior: Guide | Mapping[str, Tensor], num_samples: int | None) -> tuple[Any, int, Tensor | None]:
    """The posterior, or the points of a mixture as draws; how many; and the chain that each is of."""
    if num_samples is not None:
        check_int("num_samples", num_samples, 2)
    if not isinstance(posterior, Guide):
        available = len(next(iter(posterior.values())))
        count = available if num_samples is None else num_samples
    elif (points := posterior.facts.num_points) is not None:
        if points == 1:
            raise ValueError(
                f"guide: a {type(posterior).__name__} is a point, under which losses do not vary; pass a posterior, or "
                "take influence.Exact, which is for points."
            )
        count = points if num_samples is None else num_samples
        if count > points:
            raise ValueError(f"num_samples: {count} were requested, but the guide consists of {points} points.")
        members = torch.linspace(0, points - 1, count).round().long()
        shape = posterior.facts.chain_shape
        return posterior.atoms(members), count, None if shape is None else members // shape[1]
    else:
        count = _DRAWS if num_samples is None else num_samples
    if count < 2:
        raise ValueError(f"guide: a covariance needs at least two draws, got {count}.")
    return posterior, count, None


def _centered(losses: Tensor) -> Tensor:
    return losses - losses.mean(0)


def _segments(chain: Tensor) -> list[Tensor]:
    """Consecutive draws of each chain in pieces as long as there are of them."""
    found: list[Tensor] = []
    for index in chain.unique():
        places = (chain == index).nonzero().flatten()
        size = max(1, int(len(places) ** 0.5))
        found += [places[start : start + size] for start in range(0, len(places) - size + 1, size)]
    return found
