from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyrobnn import likelihoods
from pyrobnn.diagnostics._arviz import split_rhat
from pyrobnn.diagnostics.function_space import function_space_diagnostics
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.supervised import SupervisedModel
from tests.diagnostics.models import set_parameters, small_network

pytestmark = pytest.mark.arviz


def permuted(model: SupervisedModel, guide: MeanField, order: list[int]) -> MeanField:
    """The same functions with the hidden units in another order."""
    loc, scale = (guide.layout.split(flat.detach()) for flat in (guide.flat_loc, guide.flat_log_scale.exp()))
    moved = [
        {
            "net.0.weight": values["net.0.weight"][order],
            "net.0.bias": values["net.0.bias"][order],
            "net.2.weight": values["net.2.weight"][:, order],
            "net.2.bias": values["net.2.bias"],
        }
        for values in (loc, scale)
    ]
    other = MeanField(model)
    return set_parameters(other, other.layout.join(moved[0]), other.layout.join(moved[1]))


def test_permuted_units_agree_in_functions_and_not_in_weights() -> None:
    model, x, _ = small_network()
    guide = MeanField(model, init="prior", init_scale=0.1)
    other = permuted(model, guide, [2, 3, 1, 0])
    result = function_space_diagnostics(model, [guide, other], x[:6], num_samples=400)
    assert result.rhat is not None
    assert result.rhat.shape == (6, 1)
    assert result.max_rhat is not None
    assert result.max_rhat < 1.02  # 6 values, 2 x 400 independent draws: R-hat - 1 is of order 1 / 400
    draws = torch.stack([g.sample(400)["net.0.weight"] for g in (guide, other)])
    assert split_rhat(draws.numpy()).max() > 1.5  # R-hat of the weights says, wrongly, that they disagree


def test_different_functions_disagree() -> None:
    model, x, _ = small_network()
    guides = [MeanField(model, init="prior", init_scale=0.05) for _ in range(2)]
    result = function_space_diagnostics(model, guides, x[:6], num_samples=100)
    assert result.max_rhat is not None
    assert result.max_rhat > 1.5
    assert (result.num_chains, result.num_samples) == (2, 100)


def test_one_guide_has_an_effective_size_and_no_rhat() -> None:
    model, x, _ = small_network()
    result = function_space_diagnostics(model, MeanField(model, init_scale=0.1), x[:2], num_samples=400)
    assert result.rhat is None
    assert result.max_rhat is None
    assert result.min_ess > 250  # independent draws; the estimate scatters by about 10 %
    assert "needs several chains" in str(result)


def test_probabilities_are_compared_not_logits() -> None:
    # Adding one number to all logits changes no probability; here the chains differ only in that number.
    net = nn.Linear(1, 2)
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    first, second = (MeanField(model, init_scale=0.1) for _ in range(2))
    with torch.no_grad():
        second.flat_loc.copy_(first.flat_loc)
        site = second.layout["net.bias"]
        second.flat_loc[site.offset : site.offset + site.numel] += 50.0
    result = function_space_diagnostics(model, [first, second], torch.zeros(4, 1), num_samples=400)
    assert result.max_rhat is not None
    assert result.max_rhat < 1.02


def test_rhat_of_values_that_never_change() -> None:
    # The sign of an output, and a zero, are the same in every draw: 1 where chains agree, infinite where not.
    class Own(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = bayesianize(nn.Linear(1, 2), dist.Normal(0.0, 1.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.net(x)
            return torch.stack([out[:, 0], out[:, 1].sign(), torch.zeros(len(x))], -1)

    model = Own()
    guides = [MeanField(model, example=(torch.ones(2, 1),), init_scale=0.01) for _ in range(2)]
    for guide, value in zip(guides, (1.0, -1.0), strict=True):
        set_parameters(guide, torch.tensor([0.0, 0.0, 0.0, value]), torch.full((4,), 0.01))
    result = function_space_diagnostics(model, guides, torch.ones(2, 1), num_samples=50)
    assert result.rhat is not None
    assert result.rhat[:, 1].tolist() == [float("inf")] * 2
    assert result.rhat[:, 2].tolist() == [1.0] * 2
    assert result.rhat[:, 0].max() < 1.2


def test_batches_give_all_rows() -> None:
    model, x, _ = small_network()
    guide = MeanField(model, init_scale=0.1)
    result = function_space_diagnostics(model, guide, x[:5], num_samples=10, batch_size=2)
    assert result.ess_bulk.shape == (5, 1)


def test_mistakes_get_clear_errors() -> None:
    model, x, _ = small_network()
    with pytest.raises(ValueError, match="posterior: its draws do not differ within a chain"):
        function_space_diagnostics(model, [MAP(model), MAP(model, init="prior")], x, num_samples=10)
    with pytest.raises(ValueError, match="num_samples: R-hat needs at least 4 draws per chain, got 3"):
        function_space_diagnostics(model, MeanField(model), x, num_samples=3)

    class Silent(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = bayesianize(nn.Linear(2, 1), dist.Normal(0.0, 1.0))

        def forward(self, x: torch.Tensor) -> None:
            self.net(x)

    silent = Silent()
    with pytest.raises(TypeError, match="model: expected it to return the tensor to compare"):
        function_space_diagnostics(silent, MeanField(silent, example=(x,)), x)
