"""BatchNorm statistics under the posterior: plain averages, and nothing lost on the way."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, Composite, DeltaMixture, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.training.running_statistics import recalibrate_batch_norm
from tests.conformance.monte_carlo import Z

LINEAR, NORM, DROPOUT = 0, 1, 2


def made() -> tuple[SupervisedModel, nn.Sequential]:
    """A model with spoiled running statistics, and the network inside."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20).double()
    network = model.net.network
    network[NORM].running_mean.fill_(7.0)
    network[NORM].running_var.fill_(9.0)
    network[NORM].num_batches_tracked.fill_(50)
    return model, network


def batches() -> list[tuple[Tensor, Tensor]]:
    """Three batches of different sizes."""
    return [(torch.randn(size, 3).double(), torch.zeros(size).long()) for size in (5, 8, 7)]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all buffers."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("num_samples", [1, 3])
def test_statistics_of_a_point_estimate_are_plain_averages(num_samples: int) -> None:
    """The mean over batches of their means and (unbiased) variances, however many passes."""
    model, network = made()
    data = batches()
    recalibrate_batch_norm(model, MAP(model).double(), data, num_samples=num_samples)
    hidden = [network[LINEAR](x).detach() for x, _ in data]
    torch.testing.assert_close(network[NORM].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(network[NORM].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))


@pytest.mark.statistical
def test_statistics_are_averages_over_the_posterior() -> None:
    """One batch, 2,000 draws: ``E[mean] = μ x̄ + μ_b`` and ``E[var] = μᵀ S μ + Σ σ² S_ii``, within z = 5."""
    model, network = made()
    guide = MeanField(model, init_scale=0.4).double()
    x = torch.randn(30, 3).double()
    recalibrate_batch_norm(model, guide, [x], num_samples=2000)
    loc = {name: value.detach() for name, value in guide.layout.split(guide.flat_loc).items()}
    weight, covariance = loc["net.0.weight"], torch.cov(x.T)
    mean = weight @ x.mean(0) + loc["net.0.bias"]
    variance = ((weight @ covariance) * weight).sum(1) + 0.16 * covariance.trace()
    draws = guide.sample(2000)
    hidden = torch.einsum("kij,nj->kni", draws["net.0.weight"], x) + draws["net.0.bias"].unsqueeze(1)
    error_of_mean, error_of_variance = (s.std(0) / 2000**0.5 for s in (hidden.mean(1), hidden.var(1)))
    assert float(((network[NORM].running_mean - mean) / error_of_mean).abs().max()) < Z
    assert float(((network[NORM].running_var - variance) / error_of_variance).abs().max()) < Z


@pytest.mark.parametrize("num_samples", [1, 3])
def test_each_member_of_a_composite_has_averages_of_its_own(num_samples: int) -> None:
    """The layer before the norm is the mixture's: plain averages under each member's weights, whatever mean field
    draws behind it; the model's own statistics and the count of batches stay."""
    model, _ = made()
    guide = Composite(
        model, [("net.0.*", partial(DeltaMixture, num_members=3, init="prior")), ("*", MeanField)]
    ).double()
    before, data = buffers(model), batches()
    recalibrate_batch_norm(model, guide, data, num_samples=num_samples)
    members = guide.atoms(torch.arange(3))
    for index in range(3):
        member = members.at(index)
        hidden = [x @ member["net.0.weight"].T + member["net.0.bias"] for x, _ in data]
        own = member.buffers
        torch.testing.assert_close(own["net.net.1.running_mean"], torch.stack([h.mean(0) for h in hidden]).mean(0))
        torch.testing.assert_close(own["net.net.1.running_var"], torch.stack([h.var(0) for h in hidden]).mean(0))
        assert int(own["net.net.1.num_batches_tracked"]) == 50
    torch.testing.assert_close(buffers(model), before, rtol=0.0, atol=0.0)


@pytest.mark.statistical
def test_members_of_a_composite_average_over_what_mean_field_draws() -> None:
    """The norm behind a mean-field layer behind the mixture's: ``E[mean] = μ h̄ + μ_b`` under each member, z below 5."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20).double()
    rules: Any = [
        ("net.0.*", partial(DeltaMixture, num_members=2, init="prior")),
        ("*", partial(MeanField, init_scale=0.4)),
    ]
    guide, x = Composite(model, rules).double(), torch.randn(30, 3).double()
    recalibrate_batch_norm(model, guide, [x], num_samples=1000)
    members, mean_field = guide.atoms(torch.arange(2)), guide.parts[1]
    loc = {name: value.detach() for name, value in mean_field.layout.split(mean_field.flat_loc).items()}
    draws = mean_field.sample(1000)
    for index in range(2):
        member = members.at(index)
        hidden = (x @ member["net.0.weight"].T + member["net.0.bias"]).tanh()
        mean = loc["net.2.weight"] @ hidden.mean(0) + loc["net.2.bias"]
        outputs = torch.einsum("kij,j->ki", draws["net.2.weight"], hidden.mean(0)) + draws["net.2.bias"]
        error = outputs.std(0) / 1000**0.5
        assert float(((member.buffers["net.net.3.running_mean"] - mean) / error).abs().max()) < Z


def test_what_is_left_alone() -> None:
    """Parameters, modes, momentum and the other buffers; the count of batches does not fall."""
    model, network = made()
    guide = MeanField(model).double()
    network[NORM].momentum = 0.3
    network[DROPOUT].eval()
    modes = [module.training for module in model.modules()]
    parameters = [p.detach().clone() for m in (model, guide) for p in m.parameters()]
    before = buffers(model)
    recalibrate_batch_norm(model, guide, batches())
    after = buffers(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"net.net.1.running_mean", "net.net.1.running_var"}
    assert int(network[NORM].num_batches_tracked) == 50
    assert network[NORM].momentum == 0.3
    assert [module.training for module in model.modules()] == modes
    for now, then in zip([p for m in (model, guide) for p in m.parameters()], parameters, strict=True):
        assert torch.equal(now, then)


def test_predictions_use_the_new_statistics() -> None:
    """With the statistics of the very batch, evaluation equals training mode up to the variance's N - 1."""
    model, network = made()
    guide = MAP(model).double()
    x = torch.randn(500, 3).double()
    recalibrate_batch_norm(model, guide, [x])
    h = network[LINEAR](x)
    normalized = (h - h.mean(0)) / (h.var(0) + network[NORM].eps).sqrt()
    expected = network[3](normalized).softmax(-1).detach()
    torch.testing.assert_close(predict(model, guide, x, 1).mean, expected)


def test_inputs_may_come_alone_or_as_dicts() -> None:
    data = [x for x, _ in batches()]
    found = []
    for loader in (data, [(x, None) for x in data], [{"input": x} for x in data]):
        torch.manual_seed(0)
        model, network = made()
        recalibrate_batch_norm(model, MAP(model).double(), loader)
        found.append(network[NORM].running_mean)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def broken() -> Any:
    """A loader that fails after its first batch."""
    yield batches()[0]
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("loader", "kind", "match"),
    [
        ([], ValueError, r"^loader: it yielded no batch"),
        (broken(), OSError, "the disk is gone"),
        ([torch.randn(4, 2).double()], RuntimeError, "shapes"),
        (["text"], TypeError, r"^loader: expected a loader of inputs"),
    ],
)
def test_nothing_is_lost_when_it_fails(loader: Any, kind: type[Exception], match: str) -> None:
    model, network = made()
    before, modes = buffers(model), [module.training for module in model.modules()]
    with pytest.raises(kind, match=match):
        recalibrate_batch_norm(model, MAP(model).double(), loader)
    torch.testing.assert_close(buffers(model), before, rtol=0.0, atol=0.0)
    assert network[NORM].momentum == 0.1
    assert [module.training for module in model.modules()] == modes


def test_a_model_without_running_statistics_is_refused() -> None:
    for layer in (nn.Identity(), nn.BatchNorm1d(4, track_running_stats=False)):
        net = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
        model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
        with pytest.raises(ValueError, match=r"^model: .*no BatchNorm layer with running statistics"):
            recalibrate_batch_norm(model, MAP(model), batches())


@pytest.mark.parametrize("num_samples", [0, -1, 1.5, True])
def test_num_draws_must_be_a_positive_int(num_samples: Any) -> None:
    model, _ = made()
    with pytest.raises(ValueError, match=r"^num_samples: expected a positive int"):
        recalibrate_batch_norm(model, MAP(model).double(), batches(), num_samples=num_samples)
