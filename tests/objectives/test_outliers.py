"""Outlier exposure: the suite, value and gradient, what is left alone, training, refusals."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.guides import MAP, MeanField
from pyrobnn.metrics import auroc
from pyrobnn.objectives import ELBO, Objective, OutlierExposure
from tests.conformance.objective_suite import ObjectiveConformance
from tests.objectives.rings import classes_and_rings


class TestOutlierExposureConformance(ObjectiveConformance):
    further_terms = frozenset({"outlier_exposure"})

    def make(self) -> Objective:
        return ELBO(terms=[OutlierExposure([3.0 * torch.ones(4, 3).double(), -torch.ones(2, 3).double()])])


def problem() -> tuple[pb.SupervisedModel, MAP, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20).double()
    return model, MAP(model), (torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2] * 2))


def test_value_and_gradient_are_n_times_the_mean_divergence() -> None:
    model, guide, batch = problem()
    outliers = torch.randn(9, 3, dtype=torch.float64)
    objective = ELBO(terms=[OutlierExposure([outliers], 0.5)])
    model.eval()
    objective.loss_and_grads(model, guide, *batch)
    found = guide.flat_loc.grad.clone()
    guide.zero_grad()
    ELBO().loss_and_grads(model, guide, *batch)
    leaf = guide.flat_loc.detach().clone().requires_grad_()
    weights = {name.removeprefix("net."): value for name, value in guide.layout.split(leaf).items()}
    own = {name: value for name, value in model.net.network.named_parameters() if name not in weights}
    outputs = torch.func.functional_call(model.net.network, {**own, **weights}, (outliers,))
    uniform, probs = torch.distributions.Categorical(torch.ones(4)), torch.distributions.Categorical(logits=outputs)
    value = 20 * torch.distributions.kl_divergence(uniform, probs).mean()
    (0.5 * value).backward()
    assert float(objective.parts.values["outlier_exposure"]) == pytest.approx(float(value.detach()), rel=1e-6)
    torch.testing.assert_close(found, guide.flat_loc.grad + leaf.grad, rtol=1e-6, atol=1e-8)


def test_equal_probabilities_have_none_and_two_labels_of_a_row_add_up() -> None:
    term = OutlierExposure([torch.ones(1, 3)])
    assert float(term.penalty(pb.likelihoods.Categorical(), torch.ones(2, 5)).abs().max()) < 1e-6
    found = term.penalty(pb.likelihoods.Bernoulli(), torch.tensor([[0.0, 2.0]]))
    p = 1 / (1 + math.exp(-2.0))
    assert found.tolist()[0] == pytest.approx([0.0, -0.5 * math.log(4 * p * (1 - p))], abs=1e-6)


def test_outliers_never_touch_running_statistics_or_modes() -> None:
    model, guide, batch = problem()
    norm = model.net.network[1]
    ELBO(terms=[OutlierExposure([100.0 * torch.ones(4, 3).double()])]).loss_and_grads(model, guide, *batch)
    assert int(norm.num_batches_tracked) == 1 and norm.training
    assert float(norm.running_mean.abs().max()) < 1.0


def test_copies_begin_the_loader_anew() -> None:
    model, guide, batch = problem()
    loader = DataLoader(TensorDataset(torch.randn(8, 3).double(), torch.zeros(8)), batch_size=4)
    objective = ELBO(terms=[OutlierExposure(loader)])
    objective.loss_and_grads(model, guide, *batch)
    other = copy.deepcopy(objective)
    for each in (objective, other, other, other):
        each.loss_and_grads(model, guide, *batch)


@pytest.mark.parametrize("family", [MAP, MeanField])
def test_unknown_outliers_are_found_better(family: Any) -> None:
    """Three classes on a circle; a ring around them is trained on, a larger one found."""
    x, y, near, far = classes_and_rings()
    rates = {}
    for terms in ([], [OutlierExposure([near])]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=120)
        guide = family(model)
        pb.fit(model, guide, [(x, y)], epochs=300, lr=0.01, elbo=ELBO(terms=terms), seed=0, progress=False)
        inside, outside = (pb.predict(model, guide, data, 10, seed=0) for data in (x, far))
        rates[len(terms)] = auroc(inside.least_confidence, outside.least_confidence)
        assert float((inside.predicted == y).double().mean()) > 0.95
    assert rates[0] < 0.8
    assert rates[1] > 0.95


def test_wrong_arguments_and_models() -> None:
    for wrong in (3, "a", torch.ones(2, 3), nn.Linear):
        with pytest.raises(TypeError, match=r"^outliers: expected a function of the inputs or an iterable"):
            OutlierExposure(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^weight: "):
        OutlierExposure([torch.ones(2, 3)], -1.0)
    model, guide, batch = problem()
    with pytest.raises(ValueError, match=r"^outliers: it yields no batch of inputs"):
        ELBO(terms=[OutlierExposure([])]).loss_and_grads(model, guide, *batch)
    with pytest.raises(ValueError, match=r"^outliers: the network does not take inputs of shape \(2, 5\)"):
        ELBO(terms=[OutlierExposure([torch.ones(2, 5)])]).loss_and_grads(model, guide, *batch)
    regression = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=6)
    with pytest.raises(TypeError, match=r"^model: outlier exposure makes class probabilities equal; .* got Normal"):
        ELBO(terms=[OutlierExposure([torch.ones(2, 3)])]).loss_and_grads(
            regression, MAP(regression), torch.randn(6, 3), torch.randn(6, 1)
        )
