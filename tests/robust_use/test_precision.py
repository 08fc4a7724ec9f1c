"""Precision: float64 is not rounded on the way, half precision is not summed in, two dtypes and float16 are refused."""

from __future__ import annotations

import copy
import importlib.util
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, DeltaMixture, LowRankEnsemble, LowRankNormal, MCDropout, MeanField, NormalizingFlow
from pyrobnn.model import likelihoods
from pyrobnn.model.likelihoods import (
    Bernoulli,
    Categorical,
    Dirichlet,
    Gamma,
    HeteroscedasticNormal,
    Likelihood,
    LogNormal,
    MixtureDensity,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    StudentT,
    ZeroInflatedPoisson,
)
from pyrobnn.objectives import ELBO
from pyrobnn.sampling import HMC, SGLD

N0 = dist.Normal(0.0, 1.0)


# --------------------------------------------------------------------------------------------------------- float64


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("scale", [0.1, [0.1, 0.7]], ids=["one", "by output"])
@pytest.mark.parametrize("learned", [False, True])
def test_noise_of_a_float64_network_is_the_number_given(scale: Any, learned: bool, when: str) -> None:
    """Whether the network is converted before or after the model is built: 0.1 in float32 is off by 1.5e-9."""
    net = nn.Linear(3, 2)
    model = pb.SupervisedModel(
        net.double() if when == "before" else net, Normal(scale, learn_scale=learned), N0, num_data=8
    )
    model.double()
    found = model.likelihood.noise_scale()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.detach(), torch.tensor(scale, dtype=torch.float64), rtol=1e-15, atol=0.0)


def test_a_trained_noise_is_kept_by_conversion() -> None:
    likelihood = Normal(0.1, learn_scale=True)
    with torch.no_grad():
        next(likelihood.parameters()).fill_(math.log(0.25))
    assert float(likelihood.double().noise_scale().detach()) == pytest.approx(0.25, rel=1e-6)


def test_fixed_thresholds_of_a_float64_network_are_the_numbers_given() -> None:
    """1.2 in float32 is off by 5e-8; what a state dict brought stays."""
    likelihood = Ordinal(thresholds=[-1.0, 1.2]).double()
    assert likelihood.thresholds().tolist() == [-1.0, 1.2] == likelihood.float().double().thresholds().tolist()
    other = Ordinal(thresholds=[-1.0, 0.3]).double()
    other.load_state_dict(likelihood.state_dict())
    assert other.float().thresholds().tolist() == torch.tensor([-1.0, 1.2]).tolist()


@pytest.mark.parametrize("likelihood", [Normal(0.1), Normal(dist.LogNormal(0.0, 1.0)), HeteroscedasticNormal()])
@pytest.mark.parametrize("guide", [MAP, MeanField, LowRankNormal, DeltaMixture, MCDropout, NormalizingFlow])
def test_a_float64_network_is_float64_throughout(guide: Any, likelihood: Likelihood) -> None:
    """The default dtype is float32; predictions, objective and gradients are those of float64."""
    if guide is NormalizingFlow and importlib.util.find_spec("zuko") is None:
        pytest.skip("needs zuko, of the extra flows")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model = pb.SupervisedModel(net, copy.deepcopy(likelihood), N0, num_data=8)
    options = (2,) if guide in (LowRankNormal, DeltaMixture) else ()
    posterior = guide(model, *options)
    x = torch.randn(8, 3, dtype=torch.float64)
    y = torch.randn(8, 1 if isinstance(likelihood, HeteroscedasticNormal) else 2, dtype=torch.float64)
    parts = ELBO().backward(model, posterior, (x, y))
    assert {value.dtype for value in posterior.sample(2).values()} == {torch.float64}
    assert {parameter.dtype for parameter in posterior.parameters()} == {torch.float64}
    assert {value.dtype for value in parts.values.values()} == {torch.float64}
    prediction = pb.predict(model, posterior, x, 3)
    assert prediction.mean.dtype == prediction.log_prob(y).dtype == prediction.sample().dtype == torch.float64


@pytest.mark.parametrize("posterior", ["LowRankEnsemble", "MeanField", "HMC", "SGLD"])
def test_the_default_dtype_changes_nothing_of_a_float32_model(posterior: str) -> None:
    """Random numbers have the dtype of the weights, not the default, whose stream is another."""
    net, x = nn.Linear(2, 8), torch.randn(8, 2)
    y = (x[:, 0] > 0).long()

    def draws() -> list[Tensor]:
        model = pb.SupervisedModel(copy.deepcopy(net), Categorical(), N0, num_data=8)
        torch.manual_seed(0)
        if posterior in ("HMC", "SGLD"):
            kernel: Any = HMC(num_leapfrog=3, step_size=0.3, compile=False) if posterior == "HMC" else SGLD(1e-3)
            chains = pb.sample(model, (x, y), kernel=kernel, num_samples=5, warmup_steps=2, seed=0, progress=False)
            return list(chains.chain_draws(0).values())
        guide: Any = LowRankEnsemble(model, 3) if posterior == "LowRankEnsemble" else MeanField(model)
        pb.fit(model, guide, [(x, y)], epochs=2, seed=0, progress=False)
        return list(guide.sample(3).values())

    expected = draws()
    torch.set_default_dtype(torch.float64)
    try:
        found = draws()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


# --------------------------------------------------------------------------------------------------- half precision

LIKELIHOODS: list[tuple[Likelihood, int, Any]] = [
    (Categorical(), 5, lambda rows: torch.arange(rows) % 5),
    (Dirichlet("softplus"), 5, lambda rows: torch.arange(rows) % 5),
    (Bernoulli(), 1, lambda rows: (torch.arange(rows) % 2).float()[:, None]),
    (Normal(0.1), 1, lambda rows: torch.linspace(-1, 1, rows)[:, None]),
    (HeteroscedasticNormal(), 2, lambda rows: torch.linspace(-1, 1, rows)[:, None]),
    (HeteroscedasticNormal(beta=0.5), 2, lambda rows: torch.linspace(-1, 1, rows)[:, None]),
    (HeteroscedasticNormal(parametrization="natural"), 2, lambda rows: torch.linspace(-1, 1, rows)[:, None]),
    (Poisson(), 1, lambda rows: (torch.arange(rows) % 3).float()[:, None]),
    (StudentT(), 2, lambda rows: torch.linspace(-1, 1, rows)[:, None]),
    (likelihoods.Laplace(), 2, lambda rows: torch.linspace(-1, 1, rows)[:, None]),
    (LogNormal(), 2, lambda rows: torch.linspace(0.1, 3, rows)[:, None]),
    (Gamma(), 2, lambda rows: torch.linspace(0.1, 3, rows)[:, None]),
    (NegativeBinomial(), 2, lambda rows: (torch.arange(rows) % 3).float()[:, None]),
    (ZeroInflatedPoisson(), 2, lambda rows: (torch.arange(rows) % 3).float()[:, None]),
    (Ordinal(5), 1, lambda rows: torch.arange(rows) % 5),
    (MixtureDensity(2), 6, lambda rows: torch.linspace(-1, 1, rows)[:, None]),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("likelihood", "outputs", "targets"), LIKELIHOODS, ids=lambda value: type(value).__name__)
def test_targets_are_scored_in_float32(likelihood: Likelihood, outputs: int, targets: Any, dtype: torch.dtype) -> None:
    """A network that computes in half precision, 60000 data: its outputs' log likelihood, as float64 has it."""
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Linear(3, outputs), likelihood, N0, num_data=60_000)
    guide, x, y = MAP(model), torch.randn(32, 3), targets(32)
    with torch.autocast("cpu", dtype):
        parts = ELBO().backward(model, guide, (x, y))
        seen = model.net.network(x)
    assert seen.dtype == dtype
    right = copy.deepcopy(likelihood).double()(seen.double()).log_prob(y.double() if y.is_floating_point() else y)
    found = parts.values["log_likelihood"]
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(60_000 / 32 * float(right.sum().detach()), rel=2e-6)


@pytest.mark.parametrize("num_samples", [300, 1000])
def test_many_draws_of_a_half_precision_network(num_samples: int) -> None:
    """One draw many times: sums over draws in bfloat16 stop at 256."""
    torch.manual_seed(0)
    net = nn.Linear(3, 7).bfloat16()
    model = pb.SupervisedModel(net, Categorical(), N0, num_data=8)
    x = torch.randn(8, 3).bfloat16()
    prediction = pb.predict(model, MAP(model), x, num_samples)
    logits = net(x).double()
    torch.testing.assert_close(prediction.mean.double(), logits.softmax(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        prediction.log_prob(torch.zeros(8).long()).double(), logits.log_softmax(-1)[:, 0], rtol=1e-5, atol=1e-5
    )
    assert prediction.variation_ratio is not None
    assert float(prediction.variation_ratio.abs().max()) == 0.0
    assert float(prediction.epistemic.abs().max()) < 1e-4  # rounding over K draws


@pytest.mark.filterwarnings("ignore:loader. inputs are far from unit scale")
@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_log_probability_of_a_confident_mistake(likelihood: Likelihood, num_samples: int) -> None:
    """-120 and -300, whose exponentials are 0 in float32; fit's validation agrees."""
    net = nn.Linear(1, 2 if isinstance(likelihood, Categorical) else 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [-1.0]]) if isinstance(likelihood, Categorical) else -2.0)
    x = torch.tensor([[60.0], [150.0]])
    y = torch.tensor([1, 1]) if isinstance(likelihood, Categorical) else torch.ones(2, 1)
    model = pb.SupervisedModel(net, likelihood, N0, num_data=2)
    guide = MAP(model)
    found = pb.predict(model, guide, x, num_samples).log_prob(y).flatten()
    torch.testing.assert_close(found, torch.tensor([-120.0, -300.0]))
    history = pb.fit(model, guide, [(x, y)], epochs=1, lr=1e-12, validation=[(x, y)], progress=False)
    assert history.validation[0] == pytest.approx(-210.0, rel=1e-5)


# ------------------------------------------------------------------------------------------------------- refusals


class Mixed(nn.Module):
    """A float32 layer below a float64 one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).double())


def test_random_weights_of_two_dtypes_are_refused() -> None:
    model = pb.SupervisedModel(Mixed(), Categorical(), N0, num_data=8)
    with pytest.raises(ValueError, match=r"^site 'net.first.weight': it is torch.float32, but 'net.last.weight' is"):
        MeanField(model)
    data = torch.randn(8, 2), torch.zeros(8).long()
    with pytest.raises(ValueError, match=r"^site 'net.first.weight': .* one dtype"):
        pb.sample(model, data, kernel=SGLD(1e-4), num_samples=1, progress=False)


def test_deterministic_weights_may_have_another_dtype() -> None:
    """Only the float64 layer is random."""
    model = pb.SupervisedModel(Mixed(), Categorical(), [("last.*", N0), ("*", None)], num_data=8)
    guide = MeanField(model)
    history = pb.fit(model, guide, [(torch.randn(8, 2), torch.zeros(8).long())], epochs=2, progress=False)
    assert math.isfinite(history.elbo[-1]) and guide.loc.dtype == torch.float64


def test_a_latent_noise_has_the_dtype_of_the_weights() -> None:
    """Else the weights would be drawn in the noise's dtype, which the layers do not take."""
    net, noise = nn.Linear(2, 1).bfloat16(), Normal(dist.LogNormal(0.0, 1.0))
    model = pb.SupervisedModel(net, noise, N0, num_data=8)
    guide = MeanField(model)
    data = torch.randn(8, 2).bfloat16(), torch.randn(8, 1).bfloat16()
    history = pb.fit(model, guide, [data], epochs=2, progress=False)
    assert math.isfinite(history.elbo[-1]) and guide.loc.dtype == torch.bfloat16


def test_float16_weights_are_not_trained() -> None:
    model = pb.SupervisedModel(nn.Linear(2, 3).half(), Categorical(), N0, num_data=8)
    data = torch.randn(8, 2).half(), torch.zeros(8).long()
    with pytest.raises(ValueError, match=r"^guide: its weights are torch.float16.*autocast"):
        pb.fit(model, MeanField(model), [data], epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"^model: its weights are torch.float16.*autocast"):
        pb.sample(model, data, kernel=SGLD(1e-4), num_samples=1, progress=False)
    assert float(pb.predict(model, MAP(model), data[0], 300).mean.sum()) == pytest.approx(8.0, rel=1e-5)
