"""Derivatives of a batch's outputs by weights: Jacobians, or products with given columns, a chunk of data at a time.

Each datum is run alone, under :func:`torch.func.vmap`. Networks that torch cannot vmap (recurrent ones, control flow
that depends on values) go datum by datum. Where a datum has no outputs of its own (rows interact, or inputs are not
rows), the whole batch is run once, and each output is differentiated in its graph. Which of these holds is found by
comparing outputs with those of the whole batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from pyrobnn.core.attention import attention_as_trained, attention_under_vmap
from pyrobnn.core.first_line import first_line
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.core.trees import leaves, map_leaves, num_rows, take_rows
from pyrobnn.distributions.fixed_row import without_row
from pyrobnn.model.bayesianize import bayesian_modules
from pyrobnn.model.priors.padding import PaddedPrior
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["Derivatives"]


class _RowsInteractError(Exception):
    """Outputs of a datum alone are not those it has in its batch."""


class Derivatives:
    """Derivatives by the sites ``names``; remembers between batches how the network can be run.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites.
        names: The sites, in the order of the derivatives' last dimension; padding rows of embeddings are constants.
        max_bytes: Budget for one chunk.
    """

    def __init__(
        self, model: SupervisedModel, values: Mapping[str, Tensor], names: Sequence[str], max_bytes: int
    ) -> None:
        self.model, self.values, self.max_bytes = model, values, max_bytes
        self.padding = {name: index for name, index in _padding_rows(model).items() if name in names}
        self.weights = {n: without_row(values[n], self.padding[n]) if n in self.padding else values[n] for n in names}
        self.weights = {name: weight.detach() for name, weight in self.weights.items()}
        self.size = sum(value.numel() for value in self.weights.values())
        self.can_vmap = not any(isinstance(module, nn.RNNBase) for module in model.modules())

    @torch.no_grad()
    def outputs(self, x: Any) -> Tensor:
        """The outputs of a batch ``[B, ...]``."""
        with SubstituteMessenger(self.values), attention_as_trained():
            return self.model.predictive(x)

    def fits(self, outputs: Tensor) -> bool:
        """Whether the Jacobian of one datum is within the budget."""
        return self._bytes(outputs[0].numel()) <= self.max_bytes

    def jacobians(self, x: Any, outputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the batch, and the Jacobians ``[b, O, n]`` of their outputs.

        Args:
            x: A batch of inputs.
            outputs: Its outputs ``[B, ...]``.
        """
        columns = torch.eye(outputs[0].numel(), dtype=outputs.dtype, device=outputs.device)
        return self._chunks(x, outputs, columns.expand(len(outputs), *columns.shape))

    def products(self, x: Any, outputs: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the batch, and ``Jᵀ c`` of columns ``[B, R, O]`` for each datum, ``[b, R, n]``."""
        return self._chunks(x, outputs, columns)

    def changes(self, x: Any) -> Callable[[Tensor], Tensor]:
        """The linear map from changes of the weights ``[n]`` to those of a batch's outputs, ``J v [B, ...]``.

        It is the derivative of ``Jᵀ u`` by u, for networks without derivatives in forward mode; no Jacobian is made.
        """
        sizes = [value.numel() for value in self.weights.values()]
        with attention_under_vmap(next(iter(self.weights.values())).device):  # the fused one has no second derivative
            outputs, leaves = self._graph(x)
        with torch.enable_grad():
            dual = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(
                outputs, list(leaves.values()), dual, create_graph=True, allow_unused=True, materialize_grads=True
            )

        def change(step: Tensor) -> Tensor:
            with torch.enable_grad():
                parts = zip(pulled, step.split(sizes), strict=True)
                score = torch.stack([(gradient * part.view_as(gradient)).sum() for gradient, part in parts]).sum()
            return torch.autograd.grad(score, dual, retain_graph=True)[0]

        return change

    def _bytes(self, columns: int) -> int:
        # Twice: there is one gradient for each site, and the joined vector.
        return 2 * columns * self.size * next(iter(self.weights.values())).element_size()

    def _chunks(self, x: Any, outputs: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
        rows, has_rows = len(outputs), _has_rows(x, len(outputs))
        size = max(1, self.max_bytes // max(1, self._bytes(columns.shape[1])))
        graph: tuple[Tensor, dict[str, Tensor]] | None = None
        for start in range(0, rows, size):
            chosen = slice(start, min(start + size, rows))
            if has_rows:
                try:
                    yield chosen, self._by_datum(take_rows(x, chosen, rows), outputs[chosen], columns[chosen])
                    continue
                except _RowsInteractError:
                    has_rows = False
            if graph is None:
                graph = self._graph(x)
                _check_equal(graph[0].detach(), outputs)
            yield chosen, torch.stack([_gradients(graph, row, columns[row]) for row in range(rows)[chosen]])

    def _by_datum(self, part: Any, outputs: Tensor, columns: Tensor) -> Tensor:
        if self.can_vmap:
            try:
                return self._vmapped(part, outputs, columns)
            except _RowsInteractError:
                raise
            except Exception as error:  # torch raises all kinds
                found = self._looped(part, outputs, columns)
                self.can_vmap = False
                warnings.warn(
                    "Laplace: torch cannot vmap this network, so its derivatives are computed for one datum at a time, "
                    f"which is right but slower ({first_line(error)})",
                    stacklevel=2,
                )
                return found
        return self._looped(part, outputs, columns)

    def _vmapped(self, part: Any, outputs: Tensor, columns: Tensor) -> Tensor:
        entries = list(leaves(part))
        is_row = [isinstance(entry, Tensor) and bool(entry.dim()) for entry in entries]
        shape = outputs.shape[1:]

        def pulled(columns: Tensor, *rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            given = iter(rows)
            filled = iter([next(given) if by_row else entry for entry, by_row in zip(entries, is_row, strict=True)])
            example = map_leaves(lambda _: next(filled), part)

            def run(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
                found = self._alone(weights, example, shape)
                return found.reshape(-1), found

            _, pull, found = vjp(run, self.weights, has_aux=True)  # type: ignore[misc]
            return vmap(pull)(columns)[0], found

        # Each datum keeps a batch dimension of one, as the network expects.
        rows = [entry.unsqueeze(1) for entry, by_row in zip(entries, is_row, strict=True) if by_row]
        with attention_as_trained(), attention_under_vmap(outputs.device):
            gradients, found = vmap(pulled)(columns.contiguous(), *rows)
        _check_equal(found, outputs)
        for name, weight in self.weights.items():  # torch's batching rule of PReLU returns another shape
            if gradients[name].shape != columns.shape[:2] + weight.shape:
                raise RuntimeError(f"the gradient by {name!r} has shape {list(gradients[name].shape)}")
        return torch.cat([gradients[name].reshape(*columns.shape[:2], -1) for name in self.weights], -1).detach()

    def _looped(self, part: Any, outputs: Tensor, columns: Tensor) -> Tensor:
        found = []
        for row in range(len(outputs)):
            leaves = self._leaves()
            with torch.enable_grad(), attention_as_trained():
                try:
                    alone = self._alone(
                        leaves, take_rows(part, slice(row, row + 1), len(outputs)), outputs.shape[1:]
                    ).unsqueeze(0)
                except (RuntimeError, ValueError, IndexError) as error:  # it takes no batch of one
                    raise _RowsInteractError from error
            _check_equal(alone.detach(), outputs[row : row + 1])
            found.append(_gradients((alone, leaves), 0, columns[row]))
        return torch.stack(found)

    def _alone(self, weights: Mapping[str, Tensor], example: Any, shape: torch.Size) -> Tensor:
        """The outputs of one datum, in the shape they have in a batch (a ``squeeze()`` drops a batch of one)."""
        with SubstituteMessenger(self._whole(weights)):
            found = self.model.predictive(example)
        if found.numel() != shape.numel():
            raise _RowsInteractError
        return found.reshape(shape)

    def _graph(self, x: Any) -> tuple[Tensor, dict[str, Tensor]]:
        leaves = self._leaves()
        with torch.enable_grad(), SubstituteMessenger(self._whole(leaves)), attention_as_trained():
            return self.model.predictive(x), leaves

    def _whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values of all sites with these weights, the padding rows of embeddings included."""
        whole = {**self.values, **weights}
        for name, index in self.padding.items():
            row = self.values[name][index : index + 1]
            whole[name] = torch.cat([weights[name][:index], row, weights[name][index:]])
        return whole

    def _leaves(self) -> dict[str, Tensor]:
        return {name: value.clone().requires_grad_() for name, value in self.weights.items()}


def _padding_rows(model: nn.Module) -> dict[str, int]:
    """The index of the constant row of each site that has one."""
    return {
        full_name(network, name): prior.index
        for network in bayesian_modules(model)
        for name, prior in network.site_priors.items()
        if isinstance(prior, PaddedPrior)
    }


def _gradients(graph: tuple[Tensor, dict[str, Tensor]], row: int, columns: Tensor) -> Tensor:
    """``[R, n]``, of one row's outputs."""
    outputs, leaves = graph
    if not outputs.requires_grad:
        raise ValueError(
            f"net: its outputs do not depend on the site {next(iter(leaves))!r} by operations that can be "
            "differentiated (does it run under torch.no_grad, or detach?), so there is no curvature."
        )
    weights = list(leaves.values())
    with torch.enable_grad():
        own = outputs[row].reshape(-1)
    found = []
    for column in columns:
        gradients = torch.autograd.grad(
            own, weights, column, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        found.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(found)


def _has_rows(x: Any, rows: int) -> bool:
    """Whether every tensor of the inputs has one entry for each row of the outputs."""
    try:
        if num_rows(x) != rows:
            return False
        take_rows(x, slice(0, 1), rows)
    except ValueError:
        return False
    return True


def _check_equal(found: Tensor, expected: Tensor) -> None:
    tolerance = 3.0 * torch.finfo(expected.dtype).eps ** 0.5
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        raise _RowsInteractError
