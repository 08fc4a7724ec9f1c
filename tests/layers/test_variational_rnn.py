"""Variational recurrent dropout: torch's own modules at p = 0, masks that stand still, means, locked functions."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.layers.variational_rnn import VariationalEmbedding, VariationalGRU, VariationalLSTM, locked_masks
from pyrobnn.model.supervised import SupervisedModel
from tests.conformance.monte_carlo import Z, z_of_mean

PAIRS = [(VariationalLSTM, nn.LSTM), (VariationalGRU, nn.GRU)]
each_cell = pytest.mark.parametrize(("ours", "torchs"), PAIRS, ids=["LSTM", "GRU"])


def flat(states: Any) -> tuple[Tensor, ...]:
    return states if isinstance(states, tuple) else (states,)


# --------------------------------------------------------------------------------------------- without dropout


@each_cell
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "batch_first": True}, {"bias": False}], ids=str)
def test_without_dropout_it_is_torchs(ours: Any, torchs: Any, options: dict[str, Any]) -> None:
    """Outputs, final states and gradients, with given and with zero states; state dicts load both ways."""
    ours, torchs = ours(4, 5, **options).double(), torchs(4, 5, **options).double()
    torchs.load_state_dict(ours.state_dict())
    ours.load_state_dict(torchs.state_dict())
    assert list(ours.state_dict()) == list(torchs.state_dict())
    x = torch.randn(6, 3, 4).double()
    batch = 6 if options.get("batch_first") else 3
    start = torch.randn(2, options.get("num_layers", 1), batch, 5).double()
    for state in (None, (start[0], start[1]) if isinstance(ours, VariationalLSTM) else start[0]):
        found, expected = (flat(module(x, state)) for module in (ours, torchs))
        for a, b in zip((found[0], *flat(found[1])), (expected[0], *flat(expected[1])), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        found[0].square().sum().backward()
        expected[0].square().sum().backward()
    for (name, a), b in zip(ours.named_parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_evaluation_mode_has_no_masks_unless_sampling() -> None:
    module, x = VariationalLSTM(4, 5, dropout=0.5, recurrent_dropout=0.5), torch.randn(6, 3, 4)
    plain = nn.LSTM(4, 5)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.eval()(x)[0], plain(x)[0])
    module.sampling = True
    assert not torch.allclose(module(x)[0], plain(x)[0])


# --------------------------------------------------------------------------------------------------- the masks


@each_cell
def test_input_masks_stand_still(ours: Any, torchs: Any) -> None:
    """Through gradients: an input unit matters at all times of a sequence or at none; sequences differ."""
    module = ours(8, 5, dropout=0.5)
    x = torch.randn(7, 4, 8, requires_grad=True)
    module(x)[0].square().sum().backward()
    alive = x.grad != 0
    assert torch.equal(alive, alive[:1].expand_as(alive))
    assert 0 < alive[0].sum() < alive[0].numel()
    assert len(alive[0].unique(dim=0)) > 1


@each_cell
def test_state_masks_stand_still(ours: Any, torchs: Any) -> None:
    """Through the recurrent weights' gradients, one sequence at a time: a column of a dropped unit is never used."""
    module = ours(3, 16, recurrent_dropout=0.5)
    module(torch.randn(9, 1, 3))[0].square().sum().backward()
    used = (module.weight_hh_l0.grad != 0).any(0)
    assert 0 < used.sum() < 16


@each_cell
def test_a_locked_draw_is_masked_weights_in_torchs_module(ours: Any, torchs: Any) -> None:
    """``W (m ∘ x) = (W diag(m)) x``, so with columns masked torch's own module computes the same."""
    options = {"num_layers": 2}
    module = ours(4, 5, dropout=0.4, recurrent_dropout=0.4, **options).double().eval()
    plain, x = torchs(4, 5, **options).double(), torch.randn(6, 3, 4).double()
    with locked_masks(module) as masks:
        found = module(x)[0]
        assert torch.equal(module(x)[0], found)
    state = module.state_dict()
    names = ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1")
    plain.load_state_dict(state | {name: state[name] * mask for name, mask in zip(names, masks[""], strict=True)})
    torch.testing.assert_close(found, plain(x)[0])
    assert module.locked is None
    with locked_masks(module, masks):
        assert torch.equal(module(x)[0], found)


@pytest.mark.statistical
@each_cell
def test_masks_have_mean_one(ours: Any, torchs: Any) -> None:
    """And variance p / (1 - p); 5000 sequences, z-score below 5."""
    module = ours(6, 4, dropout=0.3, recurrent_dropout=0.6)
    torch.manual_seed(1)
    for mask, p in zip(module.draw_masks(5000), (0.3, 0.6), strict=True):
        assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
        assert z_of_mean(mask, 1.0) < Z
        assert z_of_mean(mask.square(), 1 / (1 - p)) < Z


def test_word_types_are_dropped_per_sequence() -> None:
    module = VariationalEmbedding(10, 3, dropout=0.5, batch_first=True)
    words = torch.randint(10, (6, 40), generator=torch.Generator().manual_seed(2))
    dropped = (module(words) == 0).all(-1)
    for sequence, gone in zip(words, dropped, strict=True):
        for word in sequence.unique():
            assert len(gone[sequence == word].unique()) == 1
    assert 0 < dropped.sum() < dropped.numel()
    timewise = VariationalEmbedding(10, 3, dropout=0.5)
    timewise.load_state_dict(module.state_dict())
    module.eval(), timewise.eval()
    with locked_masks(module) as masks, locked_masks(timewise, masks):
        torch.testing.assert_close(timewise(words.T), module(words).transpose(0, 1))
    plain = nn.Embedding(10, 3)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(words), plain(words))


# ------------------------------------------------------------------------------------------------- in a network


class Tagger(nn.Module):
    """Words in, a score out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = VariationalEmbedding(10, 3, dropout=0.3, batch_first=True)
        self.rnn = VariationalGRU(3, 4, dropout=0.3, recurrent_dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.words(x))[0][:, -1])


def test_locked_draws_are_functions() -> None:
    """The same for a sequence wherever it is in a batch; several draws differ."""
    net, x = Tagger().eval(), torch.arange(20).reshape(2, 10) % 10
    outputs = []
    for _ in range(4):
        with locked_masks(net) as masks:
            assert set(masks) == {"words", "rnn"}
            together = net(torch.cat([x, x]))
            torch.testing.assert_close(together[:2], together[2:])
            torch.testing.assert_close(net(x[1:]), together[1:2])
            outputs.append(together)
    assert len(torch.stack(outputs).unique(dim=0)) > 1


def test_it_can_be_made_bayesian() -> None:
    model = SupervisedModel(Tagger(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    guide = MeanField(model)
    x, y = torch.arange(40).reshape(4, 10) % 10, torch.arange(4) % 2
    history = pb.fit(model, guide, [(x, y)], epochs=2, progress=False)
    assert len(history.elbo) == 2
    assert pb.predict(model, guide, x, 3).mean.shape == (4, 2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="recurrent_dropout: expected a number from 0 to below 1"):
        VariationalLSTM(3, 4, recurrent_dropout=1.0)
    with pytest.raises(ValueError, match="hidden_size: expected a positive int, got 0"):
        VariationalGRU(3, 0)
    with pytest.raises(ValueError, match=r"x: expected sequences \[T, B, 3\], got shape \(5, 3\)"):
        VariationalGRU(3, 4)(torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"x: expected sequences \[B, T, 3\], got shape \(5, 0, 3\)"):
        VariationalGRU(3, 4, batch_first=True)(torch.randn(5, 0, 3))
    with pytest.raises(ValueError, match=r"c0: expected a state of shape \(1, 2, 4\), got \(1, 1, 4\)"):
        VariationalLSTM(3, 4)(torch.randn(5, 2, 3), (torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)))
    with pytest.raises(TypeError, match="x: expected a tensor of sequences, got PackedSequence"):
        VariationalLSTM(3, 4)(nn.utils.rnn.pack_sequence([torch.randn(5, 3)]))
    with pytest.raises(ValueError, match="x: expected word indices of two dimensions"):
        VariationalEmbedding(3, 4)(torch.zeros(2, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="net: Linear holds no module"), locked_masks(nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="masks: expected those of words, rnn, got none"), locked_masks(Tagger(), {}):
        pass
