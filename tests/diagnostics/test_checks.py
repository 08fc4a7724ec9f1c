from __future__ import annotations

import json

import pyro.distributions as dist
import pytest
import torch
from pyro.util import get_rng_state
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods
from pyrobnn.diagnostics._evaluation import Rows, evaluate
from pyrobnn.diagnostics.checks import Check, CheckReport, check
from pyrobnn.guides import MAP, SWAG, Composite, Guide, Laplace, LowRankNormal, MeanField
from pyrobnn.model.supervised import SupervisedModel
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.monte_carlo import Z, z_of_mean, z_of_means
from tests.diagnostics.models import NOISE, Conjugate, set_parameters, small_network

pytestmark = pytest.mark.arviz

COLLAPSE = ["better than a constant", "predictions that vary", "functions at the prior"]
NAMES = [*COLLAPSE, "ELBO noise floor", "weights at the prior", "signal-to-noise", "calibration", "k-hat"]


def test_the_exact_posterior_passes_everything() -> None:
    case = Conjugate(num_data=400)
    report = check(case.model, case.guide(), case.loader())
    assert [result.name for result in report.checks] == NAMES
    assert report.ok
    assert {result.status for result in report.checks} == {"pass"}
    # 400 data, coverage 0.9: standard error 0.015; |z| < 4
    assert report["calibration"].value == pytest.approx(0.9, abs=0.06)


def test_noise_floor_is_the_known_standard_deviation() -> None:
    # The log likelihood is c - ½ Σ_j s_j (w_j - b_j)², s_j = |x_j|²/σ², b_j its maximum; if w_j ~ N(m_j, v_j)
    # its variance is Σ_j s_j² (v_j² / 2 + v_j (m_j - b_j)²).
    case = Conjugate()
    s = case.x.square().sum(0) / NOISE**2
    b, v = (case.x * case.y).sum(0) / NOISE**2 / s, 1 / case.precision
    exact = (s.square() * (v.square() / 2 + v * (case.mean - b).square())).sum().sqrt().item() / 100
    value = check(case.model, case.guide(), case.loader(), num_samples=500)["ELBO noise floor"].value
    # A sum of three squares has kurtosis 3 + 12/3: relative error sqrt((7 - 1) / 4 / 500) = 5.5 %; |z| < 4
    assert value == pytest.approx(exact, rel=0.22)


def test_noisy_guide_warns_of_its_noise() -> None:
    model, x, y = small_network()
    guide = MeanField(model, init_scale=3.0)
    result = check(model, guide, [(x, y)], num_samples=50)["ELBO noise floor"]
    assert result.status == "warn"
    assert "particles" in result.reason


def test_narrow_guide_warns() -> None:
    case = Conjugate()
    assert check(case.model, case.guide(width=0.2), case.loader())["k-hat"].status == "warn"


def test_wrong_noise_warns_of_coverage() -> None:
    case = Conjugate(noise=NOISE / 4)
    result = check(case.model, case.guide(), case.loader(), num_samples=100)["calibration"]
    assert result.status == "warn"
    # Central 90 % of N(0, σ/4) holds |z| < 1.645 / 4 of the truth: 31.9 %; standard error 0.047; |z| < 4
    assert result.value == pytest.approx(0.319, abs=0.19)


def test_shares_of_a_guide_at_its_prior() -> None:
    model, x, y = small_network(hidden=30)
    guide = MeanField(model)
    at_prior = set_parameters(guide, torch.zeros(guide.layout.size), torch.ones(guide.layout.size))
    report = check(model, at_prior, [(x, y)], num_samples=25)
    assert report["weights at the prior"].status == "warn"
    assert report["weights at the prior"].value == 1.0
    assert report["signal-to-noise"].status == "warn"
    assert report["signal-to-noise"].value == 0.0
    assert not report.ok
    sharp = set_parameters(guide, torch.ones(guide.layout.size), torch.full((guide.layout.size,), 0.1))
    report = check(model, sharp, [(x, y)], num_samples=25)
    assert report["weights at the prior"].value == 0.0
    assert report["signal-to-noise"].value == 1.0


@pytest.mark.parametrize(("ones", "status"), [(140, "pass"), (60, "warn")])
def test_calibration_of_known_probabilities(ones: int, status: str) -> None:
    # Every input gets the probabilities (0.3, 0.7); the error is |share of ones - 0.7| exactly.
    model = SupervisedModel(nn.Linear(1, 2), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=200)
    guide = MAP(model, init={"net.weight": torch.zeros(2, 1), "net.bias": torch.tensor([0.3, 0.7]).log()})
    y = (torch.arange(200) < ones).long()
    result = check(model, guide, [(torch.randn(200, 1), y)], num_samples=25)["calibration"]
    assert result.status == status
    assert result.value == pytest.approx(abs(ones / 200 - 0.7), abs=1e-6)


def test_ignored_labels_are_not_judged() -> None:
    likelihood = likelihoods.Categorical(ignore_index=9)
    model = SupervisedModel(nn.Linear(1, 2), likelihood, dist.Normal(0.0, 1.0), num_data=200)
    guide = MAP(model, init={"net.weight": torch.zeros(2, 1), "net.bias": torch.tensor([0.3, 0.7]).log()})
    y = (torch.arange(200) < 60).long()
    y[100:] = 9  # of the others 60 % are ones
    result = check(model, guide, [(torch.randn(200, 1), y)], num_samples=25)["calibration"]
    assert result.value == pytest.approx(0.1, abs=1e-6)
    assert "100 rows" in result.reason


def test_calibration_on_held_out_data() -> None:
    model = SupervisedModel(nn.Linear(1, 2), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=200)
    guide = MAP(model, init={"net.weight": torch.zeros(2, 1), "net.bias": torch.tensor([0.3, 0.7]).log()})
    train = [(torch.zeros(200, 1), torch.ones(200, dtype=torch.long))]
    held_out = [(torch.zeros(100, 1), (torch.arange(100) < 70).long())]
    result = check(model, guide, train, held_out=held_out, num_samples=25)["calibration"]
    assert result.value == pytest.approx(0.0, abs=1e-6)
    assert "held-out" in result.reason


@pytest.mark.parametrize("likelihood", [likelihoods.Poisson(), likelihoods.Bernoulli()])
def test_discrete_targets_are_calibrated_under_the_prior_that_made_them(
    likelihood: likelihoods.Likelihood,
) -> None:
    model = SupervisedModel(nn.Linear(1, 1), likelihood, dist.Normal(0.0, 1.0), num_data=1000)
    guide = MAP(model, init="prior")
    x = torch.rand(1000, 1)
    point = guide.sample(1)
    y = likelihood(x @ point["net.weight"][0].T + point["net.bias"][0]).sample()
    assert check(model, guide, [(x, y)], num_samples=100)["calibration"].status == "pass"


def test_point_estimate_is_not_judged_by_its_spread() -> None:
    model, x, y = small_network()
    report = check(model, MAP(model), [(x, y)], num_samples=25)
    not_applicable = {result.name for result in report.checks if result.status == "not applicable"}
    assert not_applicable == set(NAMES) - {"calibration", "better than a constant", "predictions that vary"}
    assert all(result.reason for result in report.checks)


def test_importance_needs_all_rows() -> None:
    case = Conjugate()
    result = check(case.model, case.guide(), case.loader(), max_rows=50, num_samples=25)["k-hat"]
    assert result.status == "not applicable"
    assert "need all 100 training data, 64 were read; raise max_rows" in result.reason


def test_everything_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model = SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=8)
    model.train()
    guide = MeanField(model)
    loader = DataLoader(
        TensorDataset(torch.randn(8, 2), torch.randn(8, 1)), 4, shuffle=True, generator=torch.Generator()
    )
    modules = [*model.modules(), *guide.modules()]
    modes = [module.training for module in modules]
    tensors = {**model.state_dict(), **guide.state_dict()}
    kept = {name: value.clone() for name, value in tensors.items()}
    trained = [(p, p.requires_grad, p.grad) for p in (*model.parameters(), *guide.parameters())]
    state, own = get_rng_state(), loader.generator.get_state()
    check(model, guide, loader, num_samples=25)
    assert [module.training for module in modules] == modes
    for name, value in {**model.state_dict(), **guide.state_dict()}.items():
        assert torch.equal(value, kept[name]), name
    assert all(p.requires_grad == was and p.grad is grad for p, was, grad in trained)
    after = get_rng_state()
    assert torch.equal(after["torch"], state["torch"])
    assert (after["numpy"][1] == state["numpy"][1]).all()
    assert after["random"] == state["random"]
    assert torch.equal(loader.generator.get_state(), own)


def test_report_prints_and_converts() -> None:
    case = Conjugate()
    report = check(case.model, case.guide(), case.loader(), num_samples=25)
    text = str(report)
    assert all(name in text for name in NAMES)
    assert "net.weight" in text
    assert text.splitlines()[0].split() == ["check", "result", "value", "reason"]
    assert json.loads(json.dumps(report.to_dict()))["checks"][0]["name"] == NAMES[0]
    with pytest.raises(KeyError, match="no check 'khat'; there are 'better than a constant'"):
        report["khat"]


WEIGHT = torch.rand(20, generator=torch.Generator().manual_seed(1))


def forms() -> list[tuple[object, object]]:
    """The same weighted data as loaders and readers, with a network of two inputs."""
    _, x, y = small_network()
    a, b = x[:, :1], x[:, 1:]
    parts = [slice(0, 8), slice(8, 20)]
    pairs = [((a[rows], b[rows]), y[rows], WEIGHT[rows]) for rows in parts]
    named = [{"a": a[rows], "b": b[rows], "t": y[rows], "w": WEIGHT[rows]} for rows in parts]
    return [(pairs, None), (named, lambda raw: ({"a": raw["a"], "b": raw["b"]}, raw["t"], raw["w"]))]


class TwoInputs(nn.Module):
    """Takes its columns apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([a, b], 1))


@pytest.mark.parametrize("form", [0, 1])
def test_weighted_data_of_any_form_are_checked(form: int) -> None:
    """For a point estimate each draw has the weighted log likelihood of all rows, exactly."""
    loader, reader = forms()[form]
    _, x, y = small_network()
    model = SupervisedModel(TwoInputs(), likelihoods.Normal(NOISE), dist.Normal(0.0, 1.0), num_data=20)
    guide = MAP(model)
    run = evaluate(model, guide, Rows(model, guide, loader, 100, "loader", reader), 3)  # type: ignore[arg-type]
    density = dist.Normal(model.net.network.layer(x), NOISE).log_prob(y)[:, 0].detach()
    torch.testing.assert_close(run.by_datum.float(), WEIGHT * density)
    torch.testing.assert_close(run.log_likelihood.float(), (WEIGHT * density).sum().expand(3))
    torch.testing.assert_close(run.targets, y)
    reports = []
    for data, read in ((loader, reader), forms()[0]):
        torch.manual_seed(0)
        reports.append(str(check(model, guide, data, batch=read, num_samples=25)))  # type: ignore[arg-type]
    assert reports[0] == reports[1]


def test_batches_that_cannot_be_joined_are_checked_one_by_one() -> None:
    """Sequences padded to two lengths; the network sums over them, so that padding by zeros changes nothing."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.sum(1))

    x, y = torch.randn(20, 5, 2, generator=torch.Generator().manual_seed(3)), torch.randn(20, 1)
    x[:8, 3:] = 0.0
    model = SupervisedModel(Sums(), likelihoods.Normal(NOISE), dist.Normal(0.0, 1.0), num_data=20)
    guide = MAP(model)
    ragged = evaluate(model, guide, Rows(model, guide, [(x[:8, :3], y[:8]), (x[8:], y[8:])], 100, "loader"), 2)
    whole = evaluate(model, guide, Rows(model, guide, [(x, y)], 100, "loader"), 2)
    torch.testing.assert_close(ragged.by_datum, whole.by_datum)


def test_a_report_is_ok_unless_a_check_warns() -> None:
    passed, other = Check("a", "pass", 1.0, ""), Check("b", "not applicable", None, "")
    assert CheckReport([passed, other]).ok
    assert not CheckReport([passed, Check("c", "warn", 1.0, "")]).ok


def test_mistakes_get_clear_errors() -> None:
    model, x, y = small_network()
    guide = MeanField(model)
    with pytest.raises(TypeError, match=r"guide: expected one of pyrobnn.guides, got function"):
        check(model, lambda: None, [(x, y)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples: the checks need at least 25 draws, got 5"):
        check(model, guide, [(x, y)], num_samples=5)
    with pytest.raises(ValueError, match="loader: it yielded no data"):
        check(model, guide, [])
    with pytest.raises(TypeError, match=r"held_out: expected batches \(x, y\), .* got a Tensor"):
        check(model, guide, [(x, y)], held_out=[x], num_samples=25)


# ---------------------------------------------------------------------------------------- the ELBO of each family


def _fitted(family: str, data: ConjugateRegression, model: SupervisedModel) -> tuple[Guide, Tensor, Tensor]:
    """A guide, and the mean and covariance of its Gaussian over the weight and the bias."""
    generator = torch.Generator().manual_seed(3)
    loc, size = data.mean + 0.1, data.dim + 1
    scale = torch.linspace(0.05, 0.2, size, dtype=torch.float64)
    if family == "Laplace":
        laplace = Laplace(model, structure="full").double()
        with torch.no_grad():
            laplace.flat_loc.copy_(data.mean)
        loader = DataLoader(TensorDataset(data.x, data.y), 16)
        return laplace.fit(model, loader), data.mean, data.precision.inverse()  # exact: the posterior is Gaussian
    if family == "SWAG":
        swag = SWAG(model, rank=3).double()
        points = loc + scale * torch.randn(6, size, generator=generator, dtype=torch.float64)
        for point in points:
            with torch.no_grad():
                swag.flat_loc.copy_(point)
            swag.collect()
        # Half the variances, plus half the sample covariance of the last iterates around the running means.
        means = torch.stack([points[: index + 1].mean(0) for index in range(6)])
        deviations = (points - means)[-3:]
        covariance = 0.5 * points.var(0, correction=0).diag() + deviations.T @ deviations / (2 * 2)
        return swag, points.mean(0), covariance
    if family == "LowRankNormal":
        guide = LowRankNormal(model, 2).double()
        factor = 0.1 * torch.randn(size, 2, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            guide.flat_loc.copy_(loc)
            guide.flat_log_scale.copy_(scale.log())
            guide.flat_cov_factor.copy_(factor)
        return guide, loc, scale.square().diag() + factor @ factor.T
    if family == "composite":
        composite = Composite(model, [("net.weight", lambda *a, **o: LowRankNormal(*a, rank=1, **o)), ("*", MeanField)])
        composite.double()
        weight, bias = composite.parts
        factor = 0.1 * torch.randn(size - 1, 1, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            weight.flat_loc.copy_(loc[:-1])
            weight.flat_log_scale.copy_(scale[:-1].log())
            weight.flat_cov_factor.copy_(factor)
            bias.flat_loc.copy_(loc[-1:])
            bias.flat_log_scale.copy_(scale[-1:].log())
        return composite, loc, torch.block_diag(scale[:-1].square().diag() + factor @ factor.T, scale[-1:].square())
    return set_parameters(MeanField(model).double(), loc, scale), loc, scale.square().diag()


@pytest.mark.parametrize("family", ["MeanField", "LowRankNormal", "SWAG", "Laplace", "composite"])
def test_the_elbo_is_that_of_dense_gaussians(family: str) -> None:
    """Per datum: log likelihoods of 5000 draws of the dense Gaussian minus the dense KL; 400 draws of ours, |z| < 5."""
    data = ConjugateRegression()
    model = data.model()
    guide, mean, covariance = _fitted(family, data, model)
    posterior = torch.distributions.MultivariateNormal(mean, covariance)
    zeros = torch.zeros(data.dim + 1, dtype=torch.float64)
    variances = torch.full_like(zeros, data.prior_scale**2)
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.MultivariateNormal(zeros, variances.diag()))
    torch.manual_seed(0)
    weights = posterior.sample((5000,))
    log_likelihood = torch.distributions.Normal(weights @ data.features.T, data.noise).log_prob(data.y.T).sum(-1)
    expected = (log_likelihood - kl) / data.num_data
    rows = Rows(model, guide, [(data.x, data.y)], 1000, "loader")
    run = evaluate(model, guide, rows, 400)
    torch.testing.assert_close(run.divergence, kl.expand(400), rtol=1e-5, atol=1e-5)
    found = run.log_likelihood / data.num_data - run.divergence / data.num_data
    assert z_of_means(found.unsqueeze(-1), expected.unsqueeze(-1)) < Z
    torch.manual_seed(1)
    reason = check(model, guide, [(data.x, data.y)], num_samples=400)["ELBO noise floor"].reason
    torch.manual_seed(1)
    run = evaluate(model, guide, rows, 400)
    elbo = (run.log_likelihood - run.divergence).mean() / data.num_data
    assert reason.startswith(f"one draw gives {elbo.item():.4g} ± ")
    if family == "Laplace":  # with the exact posterior it is the evidence
        assert z_of_mean(found.unsqueeze(-1), data.log_evidence / data.num_data) < Z
