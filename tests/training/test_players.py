"""Several optimizers in one fit: each player moves its own parameters on its own objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods
from pyrobnn.guides import MAP
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import DivergenceTerm, Evaluation, LogLikelihoodTerm, NonFiniteLossError, Objective, Run, Term
from pyrobnn.training import History, Player, fit


class Distance(Term):
    """N times the squared distance of a number from the mean of the targets, to a power of its own."""

    name = "distance"

    def __init__(self, number: nn.Module, target: float = 2.0) -> None:
        super().__init__()
        self.number, self.target = number, target

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        return evaluation.model.num_data * (next(self.number.parameters()) - self.target).square().sum()


def number() -> nn.Module:
    """One trainable number."""
    return nn.ParameterList([nn.Parameter(torch.zeros(()))])


def critic(module: nn.Module, **options: object) -> Player:
    objective = Objective([LogLikelihoodTerm(0.0), DivergenceTerm(0.0), Distance(module)])
    return Player("critic", objective, module, torch.optim.SGD, **{"lr": 0.05, **options})  # type: ignore[arg-type]


def trained(players: Sequence[Player], epochs: int = 3, **options: object) -> tuple[MAP, History]:
    torch.manual_seed(0)
    x = torch.randn(12, 2)
    model = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=12)
    guide = MAP(model)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
    history = fit(model, guide, loader, epochs=epochs, lr=0.05, players=players, progress=False, **options)  # type: ignore[arg-type]
    return guide, history


def test_a_player_moves_its_own_parameters_alone() -> None:
    """Gradient descent on a square: the distance shrinks by ``1 - 2 lr`` in each of 9 steps of two."""
    module = number()
    alone, _ = trained([])
    beside, history = trained([critic(module, num_steps=2)])
    assert torch.equal(alone.flat_loc, beside.flat_loc)
    left = 2.0 * (1.0 - 2.0 * 0.05) ** 18
    torch.testing.assert_close(next(module.parameters()).detach(), torch.tensor(2.0 - left))
    losses = history.terms["critic.loss"]
    before_last = [4.0 * 0.9 ** (2 * (2 * step + 1)) for step in range(9)]
    expected = [sum(before_last[start : start + 3]) / 3 for start in (0, 3, 6)]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_parameters_of_a_player_in_the_model_are_not_the_trainings() -> None:
    """A learned noise scale that a player keeps at its start, since its objective does not depend on it."""
    torch.manual_seed(0)
    x = torch.randn(12, 2)
    noise = likelihoods.Normal(1.0, learn_scale=True)
    model = SupervisedModel(nn.Linear(2, 1), noise, dist.Normal(0.0, 1.0), num_data=12)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
    other = number()
    objective = Objective([LogLikelihoodTerm(0.0), DivergenceTerm(0.0), Distance(other)])
    module = nn.ModuleList([model.likelihood, other])
    fit(model, MAP(model), loader, epochs=2, players=[Player("noise", objective, module)], progress=False)
    assert float(model.likelihood.noise_scale().detach()) == pytest.approx(1.0)
    assert float(next(other.parameters()).detach()) > 0.0


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = number(), number()
    expected, _ = trained([critic(whole, lr=0.01)], epochs=4)
    trained([critic(parts, lr=0.01)], epochs=2, checkpoint=tmp_path)
    fresh = number()
    found, history = trained([critic(fresh, lr=0.01)], epochs=4, checkpoint=tmp_path, resume=True)
    assert torch.equal(found.flat_loc, expected.flat_loc)
    assert torch.equal(next(fresh.parameters()), next(whole.parameters()))
    assert history.epochs == 4
    with pytest.raises(ValueError, match=r"^players: the run to resume had \['critic'\]"):
        trained([], epochs=5, checkpoint=tmp_path, resume=True)


def test_what_cannot_play_is_refused() -> None:
    with pytest.raises(ValueError, match="module: the player 'critic' has no parameter"):
        critic(nn.ReLU())
    with pytest.raises(ValueError, match="num_steps"):
        critic(number(), num_steps=0)
    module = number()
    bad = Objective([LogLikelihoodTerm(0.0), DivergenceTerm(0.0), Distance(module, float("nan"))])
    with pytest.raises(NonFiniteLossError, match=r"player 'bad': .*distance"):
        trained([Player("bad", bad, module)])
