r"""The generalized Gauss–Newton matrix from per-example Jacobians, :math:`H = \sum_n J_n^\top \Lambda_n J_n`.

``J_n [O, n]`` are the derivatives of a datum's ``O`` outputs by the chosen weights: :func:`torch.func.jacrev` under
:func:`torch.func.vmap`, in chunks of examples that fit a byte budget. (Recurrent networks, which torch cannot vmap, go
example by example.) The network must be in evaluation mode: under batch statistics examples have no Jacobian each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from pyrobnn.core.trees import leaves, map_leaves, num_rows
from pyrobnn.curvature.fisher import fisher_roots
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["gauss_newton", "outputs_and_jacobians"]


def gauss_newton(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    names: Sequence[str],
    x: Any,
    *,
    diagonal: bool = False,
    max_bytes: int = 256 * 2**20,
) -> Tensor:
    """One batch's part of H, summed over its examples (not averaged, not scaled to the data set).

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites.
        names: The sites whose curvature is requested, in this order.
        x: A batch of inputs.
        diagonal: Only the diagonal.
        max_bytes: Budget for Jacobians.

    Returns:
        ``[n, n]``, or ``[n]`` if diagonal, in double precision.
    """
    total: Tensor | float = 0.0
    for outputs, jacobians in outputs_and_jacobians(model, values, names, x, max_bytes=max_bytes):
        with SubstituteMessenger(values):
            roots = fisher_roots(model.likelihood, outputs).flatten(2)  # [columns, b, O]
        rows = torch.einsum("cbo,bon->cbn", roots, jacobians).flatten(0, 1).double()
        total = total + (rows.square().sum(0) if diagonal else rows.T @ rows)
    return torch.as_tensor(total)


def outputs_and_jacobians(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    names: Sequence[str],
    x: Any,
    *,
    max_bytes: int = 256 * 2**20,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs ``[b, ...]`` and their Jacobians ``[b, O, n]`` by the sites ``names``, a chunk of examples at a time.

    Arguments are those of :func:`gauss_newton`. No gradients are attached.
    """
    chosen = {name: values[name].detach() for name in names}

    def outputs_of(weights: dict[str, Tensor], example: Any) -> tuple[Tensor, Tensor]:
        with SubstituteMessenger({**values, **weights}):
            outputs = model.predictive(example).squeeze(0)
        return outputs.reshape(-1), outputs

    with torch.no_grad():
        num_outputs = outputs_of(chosen, _rows(x, slice(0, 1)))[0].numel()
    num_weights = sum(value.numel() for value in chosen.values())
    # Twice: jacrev holds one gradient per output and the assembled matrix.
    bytes_per_example = 2 * num_outputs * num_weights * next(iter(chosen.values())).element_size()
    chunk = max(1, max_bytes // max(1, bytes_per_example))
    rows = num_rows(x)
    differentiate = _looped if _is_recurrent(model) else _vmapped
    for start in range(0, rows, chunk):
        # Examples keep a batch dimension of one, as the network expects.
        part = _rows(x, slice(start, start + chunk), unsqueeze=True)
        jacobians, outputs = differentiate(outputs_of, chosen, part)
        yield outputs.detach(), torch.cat([jacobians[name].flatten(2) for name in names], -1).detach()


_OutputsOf = Callable[[dict[str, Tensor], Any], tuple[Tensor, Tensor]]


def _vmapped(outputs_of: _OutputsOf, weights: dict[str, Tensor], part: Any) -> tuple[dict[str, Tensor], Tensor]:
    def of_tensors(weights: dict[str, Tensor], tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        following = iter(tensors)
        return outputs_of(weights, map_leaves(lambda _: next(following), part))

    # vmap does not look into every container that a network may take.
    return vmap(jacrev(of_tensors, has_aux=True), in_dims=(None, 0))(weights, list(leaves(part)))


def _looped(outputs_of: _OutputsOf, weights: dict[str, Tensor], part: Any) -> tuple[dict[str, Tensor], Tensor]:
    names, jacobians, outputs = list(weights), [], []
    for index in range(num_rows(part)):
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        with torch.enable_grad():
            flat, shaped = outputs_of(leaves, _rows(part, index))
        by_output = [torch.autograd.grad(o, list(leaves.values()), retain_graph=True) for o in flat]
        jacobians.append([torch.stack(column) for column in zip(*by_output, strict=True)])
        outputs.append(shaped)
    stacked = [torch.stack(column) for column in zip(*jacobians, strict=True)]
    return dict(zip(names, stacked, strict=True)), torch.stack(outputs)


def _is_recurrent(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def _rows(x: Any, rows: slice | int, unsqueeze: bool = False) -> Any:
    """Rows of each tensor of a batch."""
    return map_leaves(lambda leaf: leaf[rows].unsqueeze(1) if unsqueeze else leaf[rows], x)
