r"""Variational dropout for recurrent networks: one mask per sequence, the same at all of its time steps.

.. math::  h_t = f\big(W_x (x_t \circ m_x) + W_h (h_{t-1} \circ m_h)\big), \qquad m = b / (1 - p),
           \quad b_j \sim \mathrm{Bernoulli}(1 - p),

with :math:`m_x, m_h` fixed over t: a sequence is scored under *one* draw of the weights (their columns dropped), which
is what makes dropout an approximate posterior. A new mask at each step, or between layers only as in
``nn.LSTM(dropout=…)``, is not. Embeddings drop word *types*: in a sequence a word is dropped wherever it occurs.

Gal & Ghahramani, *A Theoretically Grounded Application of Dropout in Recurrent Neural Networks* (2016), with masks tied
over the gates. State dicts are those of ``nn.LSTM``, ``nn.GRU`` and ``nn.Embedding``, both ways. The loop over time is
in Python, so layers without recurrent dropout are faster as torch's own. Where one mask for a whole batch will do,
:class:`pyrobnn.guides.MCDropout` over an ``nn.LSTM``'s weights is the same posterior, and a guide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.core.arguments import check_number, check_positive_int

__all__ = ["Masks", "VariationalEmbedding", "VariationalGRU", "VariationalLSTM", "locked_masks"]

Masks = tuple[Tensor, ...]
"""``[sequences or 1, units]`` each: of a recurrent module (input, state) by layer, of an embedding (types,)."""


class _Variational(nn.Module):
    """A module with masks: fresh ones for each sequence of a call, or locked ones for all calls."""

    def __init__(self, sampling: bool) -> None:
        super().__init__()
        self.sampling = sampling
        self.locked: Masks | None = None

    def draw_masks(self, num_sequences: int = 1) -> Masks:
        """Masks for so many sequences; entries are 0 or 1 / (1 - p)."""
        raise NotImplementedError

    def _masks(self, num_sequences: int) -> Masks | None:
        if self.locked is not None:
            return self.locked
        return self.draw_masks(num_sequences) if self.training or self.sampling else None


class _Recurrent(_Variational):
    """What both cells share."""

    num_gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        sampling: bool = False,
    ) -> None:
        super().__init__(sampling)
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_positive_int(name, size)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.dropout = _checked("dropout", dropout)
        self.recurrent_dropout = _checked("recurrent_dropout", recurrent_dropout)
        self.bias, self.batch_first = bias, batch_first
        rows, bound = self.num_gates * hidden_size, 1.0 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            shapes = {"weight_ih": (rows, hidden_size if layer else input_size), "weight_hh": (rows, hidden_size)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}  # type: ignore[dict-item]
            for name, shape in shapes.items():
                parameter = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                self.register_parameter(f"{name}_l{layer}", parameter)

    def draw_masks(self, num_sequences: int = 1) -> Masks:
        """Masks of input and state for each layer in turn, ``[num_sequences, units]``."""
        masks: list[Tensor] = []
        for layer in range(self.num_layers):
            inputs = self.hidden_size if layer else self.input_size
            for units, p in ((inputs, self.dropout), (self.hidden_size, self.recurrent_dropout)):
                masks.append(_mask(self._layer("hh", layer)[0], num_sequences, units, p))
        return tuple(masks)

    def _run(self, x: Tensor, states: list[tuple[Tensor, ...]]) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """All layers over a sequence ``[T, B, input_size]``: the last layer's outputs and all final states."""
        masks = self._masks(x.shape[1])
        finals = []
        for layer, state in enumerate(states):
            mask_x, mask_h = (None, None) if masks is None else masks[2 * layer : 2 * layer + 2]
            weight_hh, bias_hh = self._layer("hh", layer)
            driven = F.linear(x if mask_x is None else x * mask_x, *self._layer("ih", layer))
            outputs = []
            for gates in driven:
                hidden = state[0] if mask_h is None else state[0] * mask_h
                state = self._step(gates, F.linear(hidden, weight_hh, bias_hh), state)
                outputs.append(state[0])
            x = torch.stack(outputs)
            finals.append(state)
        return x, finals

    def _layer(self, kind: str, layer: int) -> tuple[Tensor, Tensor | None]:
        return getattr(self, f"weight_{kind}_l{layer}"), getattr(self, f"bias_{kind}_l{layer}") if self.bias else None

    def _step(self, from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next state from the gates' parts."""
        raise NotImplementedError

    def _time_first(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor of sequences, got {type(x).__name__}; pad them to one length.")
        if x.dim() != 3 or x.shape[-1] != self.input_size or not x.shape[1 if self.batch_first else 0]:
            order = "[B, T, " if self.batch_first else "[T, B, "
            raise ValueError(f"x: expected sequences {order}{self.input_size}], got shape {tuple(x.shape)}.")
        return x.transpose(0, 1) if self.batch_first else x

    def _start(self, x: Tensor, given: Tensor | None, name: str) -> Tensor:
        shape = (self.num_layers, x.shape[1], self.hidden_size)
        if given is not None and given.shape != shape:
            raise ValueError(f"{name}: expected a state of shape {shape}, got {tuple(given.shape)}.")
        return x.new_zeros(shape) if given is None else given

    def _finish(self, outputs: Tensor, finals: list[tuple[Tensor, ...]]) -> tuple[Tensor, list[Tensor]]:
        outputs = outputs.transpose(0, 1) if self.batch_first else outputs
        return outputs, [torch.stack(parts) for parts in zip(*finals, strict=True)]

    def extra_repr(self) -> str:
        """Sizes and probabilities."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, dropout={self.dropout}, "
            f"recurrent_dropout={self.recurrent_dropout}"
        )


class VariationalLSTM(_Recurrent):
    """An LSTM with one mask per sequence for the inputs and the hidden state of each layer.

    Masks are active in training mode. Called as ``nn.LSTM`` is: ``output, (h, c) = lstm(x, (h0, c0))``, padded batches.

    Args:
        input_size: Features of the input.
        hidden_size: Units.
        num_layers: Layers.
        dropout: Probability of dropping an input unit of a layer.
        recurrent_dropout: Probability of dropping a unit of the hidden state on its way to the gates.
        bias: Whether there are biases.
        batch_first: Sequences ``[B, T, input_size]`` instead of ``[T, B, input_size]``.
        sampling: Draw masks in evaluation mode, too: each call samples functions from the posterior.

    Attributes:
        sampling: As above; may be changed.
        locked: Masks that :func:`locked_masks` holds in place, if any.

    Raises:
        ValueError: If a size is not positive or a probability not in [0, 1).
    """

    num_gates = 4

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs of the last layer at all times, and the final hidden and cell states ``[layers, B, hidden_size]``.

        Raises:
            TypeError: If ``x`` is no tensor (packed sequences are not taken).
            ValueError: If ``x`` or a state has the wrong shape.
        """
        x = self._time_first(x)
        starts = [self._start(x, s, name) for s, name in zip(state or (None, None), ("h0", "c0"), strict=True)]
        outputs, (hidden, cell) = self._finish(*self._run(x, list(zip(*starts, strict=True))))
        return outputs, (hidden, cell)

    def _step(self, from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        admit, forget, candidate, release = (from_input + from_state).chunk(4, -1)
        cell = forget.sigmoid() * state[1] + admit.sigmoid() * candidate.tanh()
        return release.sigmoid() * cell.tanh(), cell


class VariationalGRU(_Recurrent):
    """A GRU with one mask per sequence for the inputs and the hidden state of each layer.

    The state is masked on its way to the gates; what is carried over, ``z ∘ h``, is not. Called as ``nn.GRU`` is:
    ``output, h = gru(x, h0)``. Arguments, attributes and errors are those of :class:`VariationalLSTM`.
    """

    num_gates = 3

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs of the last layer at all times, and the final states ``[layers, B, hidden_size]``.

        Raises:
            TypeError: If ``x`` is no tensor (packed sequences are not taken).
            ValueError: If ``x`` or the state has the wrong shape.
        """
        x = self._time_first(x)
        outputs, (hidden,) = self._finish(*self._run(x, [(start,) for start in self._start(x, state, "h0")]))
        return outputs, hidden

    def _step(self, from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        reset_x, update_x, new_x = from_input.chunk(3, -1)
        reset_h, update_h, new_h = from_state.chunk(3, -1)
        update = (update_x + update_h).sigmoid()
        new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        return (torch.lerp(new, state[0], update),)


class VariationalEmbedding(_Variational):
    """An embedding that drops word types: in one sequence, every occurrence of a dropped word is zero.

    Args:
        num_embeddings: Word types.
        embedding_dim: Features of a word.
        dropout: Probability of dropping a type.
        batch_first: Sequences ``[B, T]`` of indices instead of ``[T, B]``.
        sampling: Draw masks in evaluation mode, too.

    Raises:
        ValueError: If the probability is not in [0, 1).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dropout: float = 0.0,
        batch_first: bool = False,
        sampling: bool = False,
    ) -> None:
        super().__init__(sampling)
        self.dropout, self.batch_first = _checked("dropout", dropout), batch_first
        self.weight = nn.Parameter(torch.randn(num_embeddings, embedding_dim))

    def draw_masks(self, num_sequences: int = 1) -> Masks:
        """The mask of the types, ``[num_sequences, num_embeddings]``."""
        return (_mask(self.weight, num_sequences, len(self.weight), self.dropout),)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[..., embedding_dim]`` of word indices ``[T, B]`` (``[B, T]`` if batch first).

        Raises:
            ValueError: If ``x`` is not two-dimensional.
        """
        if x.dim() != 2:
            raise ValueError(f"x: expected word indices of two dimensions, got shape {tuple(x.shape)}.")
        words = F.embedding(x, self.weight)
        by_sequence = x if self.batch_first else x.T
        masks = self._masks(len(by_sequence))
        if masks is None:
            return words
        factors = masks[0].expand(len(by_sequence), -1).gather(1, by_sequence)
        return words * (factors if self.batch_first else factors.T).unsqueeze(-1)


@contextmanager
def locked_masks(net: nn.Module, masks: Mapping[str, Masks] | None = None) -> Iterator[dict[str, Masks]]:
    """One function from the posterior: the same masks for all sequences and all calls while the block lasts.

    Args:
        net: A network that holds modules of this file; in any mode.
        masks: Those of an earlier block, to have the same function again; new ones if None.

    Yields:
        The masks by module name.

    Raises:
        ValueError: If ``net`` holds no such module, or ``masks`` are not those of one of its modules.
    """
    modules = {name: module for name, module in net.named_modules() if isinstance(module, _Variational)}
    if not modules:
        raise ValueError(f"net: {type(net).__name__} holds no module with variational dropout.")
    drawn = {name: module.draw_masks() for name, module in modules.items()} if masks is None else dict(masks)
    if set(drawn) != set(modules):
        raise ValueError(f"masks: expected those of {', '.join(modules)}, got {', '.join(drawn) or 'none'}.")
    before = {name: module.locked for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.locked = drawn[name]
        yield drawn
    finally:
        for name, module in modules.items():
            module.locked = before[name]


def _mask(like: Tensor, num_sequences: int, units: int, p: float) -> Tensor:
    return torch.bernoulli(like.new_full((num_sequences, units), 1.0 - p)) / (1.0 - p)


def _checked(name: str, p: float) -> float:
    check_number(name, p, 0.0, 1.0, below=True)
    return float(p)
