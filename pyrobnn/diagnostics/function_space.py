r"""Convergence in function space: R-hat and effective sample size of what the network predicts.

Weights are not identified: permuting hidden units changes the weights and not the function, so R-hat of
weights is large for chains that agree and means nothing. The predictions :math:`f_w(x_n)` are identified. For
chains :math:`c` and draws :math:`s`, the values ``[chain, draw, n, ...]`` enter the rank-normalized split
R-hat and the bulk and tail effective sample sizes, one of each per input and output. For classes the values
are probabilities, because logits are identified only up to a constant.

Vehtari, Gelman, Simpson, Carpenter & Bürkner, *Rank-normalization, folding, and localization: an improved
R-hat for assessing convergence of MCMC* (2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics._arviz import effective_sample_size, split_rhat
from pyrobnn.diagnostics._batches import Piece, batches
from pyrobnn.diagnostics._draws import Posterior, at_draw, check_sites, read_chains, undisturbed
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["FunctionSpaceDiagnostics", "function_space_diagnostics"]


@dataclass(frozen=True, eq=False)
class FunctionSpaceDiagnostics:
    """Agreement and efficiency of chains, per input and output ``[N, ...]``.

    Attributes:
        rhat: R-hat; None with a single chain. Up to 1.01 is good, above 1.05 the chains disagree.
        ess_bulk: Effective number of draws for the center of the distribution, over all chains.
        ess_tail: The same for its 5 % and 95 % quantiles.
        num_chains: Number of chains.
        num_samples: Draws in each.
    """

    rhat: Tensor | None
    ess_bulk: Tensor
    ess_tail: Tensor
    num_chains: int
    num_samples: int

    @property
    def max_rhat(self) -> float | None:
        """The worst R-hat."""
        return None if self.rhat is None else self.rhat.max().item()

    @property
    def min_ess(self) -> float:
        """The smallest effective sample size."""
        return min(self.ess_bulk.min().item(), self.ess_tail.min().item())

    def __str__(self) -> str:
        rhat = "needs several chains" if self.max_rhat is None else f"at most {self.max_rhat:.3f}"
        return (
            f"function space, {self.num_chains} x {self.num_samples} draws, {self.ess_bulk.numel()} values: "
            f"R-hat {rhat}, effective sample size at least {self.min_ess:.0f}"
        )


@explained
def function_space_diagnostics(
    model: Any,
    posterior: Posterior,
    *args: Any,
    num_samples: int | None = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> FunctionSpaceDiagnostics:
    """R-hat and effective sample size of predictions.

    For example ``function_space_diagnostics(model, [guide, other], x)``.

    Args:
        model: The model. Of a :class:`~pyrobnn.SupervisedModel` the values compared are class probabilities
            or means; any other must return a tensor, such as its network's output.
        posterior: :class:`~pyrobnn.guides.Chains`; a list of guides, fitted from several seeds; or a finished
            :class:`pyro.infer.MCMC`.
        *args: Inputs at which to compare; a hundred are enough, as R-hat takes about a millisecond per value.
        num_samples: Draws per chain; None takes 500 of a guide and all of an MCMC run.
        batch_size: Rows that a :class:`~pyrobnn.SupervisedModel` sees at a time, which declares that each input has one
            entry for each row and that rows do not interact; None for one call of the model, as in training.
        **kwargs: Keyword arguments of the model.

    Returns:
        The diagnostics. Draws of one guide are independent, so their effective size is their number; it is
        R-hat across guides that says whether they found the same functions.

    Raises:
        TypeError: If the posterior is of the wrong kind or the model returns no tensor.
        ValueError: If the posterior is a point estimate, there are fewer than four draws, or model and
            posterior do not belong together.
    """
    values = function_values(model, posterior, args, kwargs, num_samples, batch_size)
    constant = np.ptp(values, axis=1).max(axis=0) == 0.0
    if constant.all():
        raise ValueError(
            "posterior: its draws do not differ within a chain, as of a point estimate, so neither R-hat nor "
            "an effective sample size exists; compare the predictions of point estimates directly."
        )
    return FunctionSpaceDiagnostics(
        rhat=_tensor(_rhat(values, constant)) if len(values) > 1 else None,
        ess_bulk=_tensor(effective_sample_size(values, "bulk")),
        ess_tail=_tensor(effective_sample_size(values, "tail")),
        num_chains=values.shape[0],
        num_samples=values.shape[1],
    )


def function_values(
    model: Any,
    posterior: Posterior,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_samples: int | None = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """What is compared, ``[chain, draw, N, ...]``; arguments and errors as of :func:`function_space_diagnostics`."""
    pieces = batches(model, args, kwargs, batch_size)
    with undisturbed(model, pieces):
        chains = read_chains(model, posterior, num_samples, args, kwargs)
        if chains.num_samples < 4:
            raise ValueError(f"num_samples: R-hat needs at least 4 draws per chain, got {chains.num_samples}.")
        values: np.ndarray | None = None
        for chain, draw, sites in chains:
            function = torch.cat([_function(model, piece, sites, chain == draw == 0) for piece in pieces])
            if values is None:
                values = np.empty((*chains.shape, *function.shape))
            values[chain, draw] = function.double().cpu().numpy()
    assert values is not None, "a chain has at least one draw"
    return values


def _function(model: Any, batch: Piece, sites: dict[str, Tensor], is_first: bool) -> Tensor:
    """What is compared, ``[B, ...]``, at one draw."""
    with at_draw(model, sites) as run:
        outputs = model(*batch.args, **batch.kwargs)
        if isinstance(model, SupervisedModel):
            outputs = model.likelihood.expectation(outputs)
    if is_first:
        check_sites(model, sites, run)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model: expected it to return the tensor to compare, such as its network's output, got "
            f"{type(outputs).__name__}; return it from the model's forward."
        )
    return outputs if outputs.dim() else outputs[None]


def _rhat(values: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """R-hat, with the limits of 0/0 and x/0 where a value is the same in every draw of each chain."""
    agrees = np.ptp(values, axis=(0, 1)) == 0.0
    rhat = np.where(agrees, 1.0, np.inf)
    rhat[~constant] = split_rhat(values[:, :, ~constant])
    return rhat


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
