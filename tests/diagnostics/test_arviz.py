from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn

from pyrobnn import likelihoods, priors
from pyrobnn.diagnostics.arviz import GROUPS, to_arviz
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.supervised import SupervisedModel
from tests.diagnostics.models import NOISE, Conjugate, small_network

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz as az

pytestmark = pytest.mark.arviz


def values(data: object, group: str, name: str) -> np.ndarray:
    return getattr(data, group)[name].values


def groups_of(data: object) -> set[str]:
    return set(data.children) if hasattr(data, "children") else set(data.groups())


# ------------------------------------------------------------------------------------------------ the groups


def test_all_groups_with_dimensions_and_coordinates() -> None:
    model, x, y = small_network()
    data = to_arviz(model, MeanField(model), x, y, num_samples=6)
    assert groups_of(data) == set(GROUPS)
    weight = data.posterior["net.0.weight"]
    assert weight.dims == ("chain", "draw", "net.0.out", "net.0.in")
    assert weight.shape == (1, 6, 4, 2)
    assert data.posterior["net.0.bias"].dims == ("chain", "draw", "net.0.out")
    assert data.prior["net.2.weight"].dims == ("chain", "draw", "net.2.out", "net.2.in")
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "data", "y_dim_1")
    assert data.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert data.observed_data["y"].dims == ("data", "y_dim_1")
    assert data.log_likelihood["data"].values.tolist() == list(range(20))
    np.testing.assert_array_equal(data.observed_data["y"].values, y.numpy())


def test_dimension_names_of_other_layers() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 3, 3), nn.Flatten(), nn.GRU(48, 5))
    model = bayesianize(net, dist.Normal(0.0, 1.0))
    guide = MeanField(model)
    data = to_arviz(model, guide, torch.zeros(2, 1, 4, 4), num_samples=2, groups=["posterior"])
    assert data.posterior["0.weight"].dims[2:] == ("0.out", "0.in", "0.height", "0.width")
    assert data.posterior["1.weight"].dims[2:] == ("1.in", "1.out", "1.height", "1.width")
    assert data.posterior["1.bias"].dims[2:] == ("1.out",)
    assert data.posterior["3.weight_ih_l0"].dims[2:] == ("3.weight_ih_l0_dim_0", "3.weight_ih_l0_dim_1")


def test_grouped_transposed_convolutions_have_a_dimension_of_their_own() -> None:
    """Their weight has the channels of one group, their bias those of all."""
    model = bayesianize(nn.ConvTranspose1d(4, 6, 3, groups=2), dist.Normal(0.0, 1.0))
    data = to_arviz(model, MeanField(model), torch.zeros(2, 4, 5), num_samples=2, groups=["posterior"])
    assert data.posterior["weight"].dims[2:] == ("in", "group_out", "width")
    assert data.posterior["weight"].shape[2:] == (4, 3, 3)
    assert data.posterior["bias"].dims[2:] == ("out",)
    assert data.posterior["bias"].shape[2:] == (6,)


def test_log_likelihood_is_that_of_each_draw() -> None:
    case = Conjugate()
    data = to_arviz(case.model, case.guide(), case.x, case.y, num_samples=10)
    weight = values(data, "posterior", "net.weight")[0, :, 0]
    outputs = weight @ case.x.numpy().T
    expected = -0.5 * ((case.y[:, 0].numpy() - outputs) / NOISE) ** 2 - np.log(NOISE * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(values(data, "log_likelihood", "y")[0], expected, rtol=1e-6)  # noise: float32


def test_predictive_draws_follow_the_likelihood_at_each_draw() -> None:
    case = Conjugate()
    data = to_arviz(case.model, case.guide(), case.x, case.y, num_samples=200)
    for latent, predictive in (("posterior", "posterior_predictive"), ("prior", "prior_predictive")):
        outputs = values(data, latent, "net.weight")[0, :, 0] @ case.x.numpy().T
        residual = (values(data, predictive, "y")[0, :, :, 0] - outputs) / NOISE
        n = residual.size  # 20,000 independent standard normals; |z| < 4
        assert abs(residual.mean()) * np.sqrt(n) < 4
        assert abs(residual.var() - 1) * np.sqrt(n / 2) < 4


def test_prior_draws_come_from_the_prior() -> None:
    net = nn.Linear(20, 10, bias=False)
    model = SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(1.0, 2.0), num_data=3)
    guide = MeanField(model)
    data = to_arviz(model, guide, torch.zeros(3, 20), torch.zeros(3, 10), num_samples=100, groups=["prior"])
    z = (values(data, "prior", "net.weight") - 1.0) / 2.0  # 20,000 standard normals; |z| < 4
    assert abs(z.mean()) * np.sqrt(z.size) < 4
    assert abs(z.var() - 1) * np.sqrt(z.size / 2) < 4


@settings(max_examples=25)
@given(batch_size=st.integers(1, 25), rows=st.integers(1, 20))
def test_batches_change_nothing(batch_size: int, rows: int) -> None:
    model, x, y = small_network()
    guide = MAP(model)  # a point: the same draw every time
    wanted = ["log_likelihood", "observed_data"]
    whole = to_arviz(model, guide, x[:rows], y[:rows], num_samples=1, groups=wanted)
    parts = to_arviz(model, guide, x[:rows], y[:rows], num_samples=1, groups=wanted, batch_size=batch_size)
    np.testing.assert_allclose(
        values(parts, "log_likelihood", "y"), values(whole, "log_likelihood", "y"), rtol=2e-5, atol=1e-5
    )
    np.testing.assert_array_equal(values(parts, "observed_data", "y"), y[:rows].numpy())


def test_more_rows_than_training_data() -> None:
    model, x, y = small_network(num_data=20)
    data = to_arviz(model, MAP(model), x.repeat(3, 1), y.repeat(3, 1), num_samples=1)
    scores = values(data, "log_likelihood", "y")[0, 0]
    assert scores.shape == (60,)
    np.testing.assert_allclose(scores[:20], scores[40:], rtol=1e-5)


def test_without_targets() -> None:
    model, x, _ = small_network()
    data = to_arviz(model, MeanField(model), x, num_samples=3)
    assert groups_of(data) == {"posterior", "posterior_predictive", "prior", "prior_predictive"}
    assert values(data, "posterior_predictive", "y").shape == (1, 3, 20, 1)
    with pytest.raises(ValueError, match=r"groups: 'log_likelihood' needs observations"):
        to_arviz(model, MeanField(model), x, groups=["log_likelihood"])


def test_classes_keep_their_integer_type() -> None:
    model = SupervisedModel(nn.Linear(2, 3), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=9)
    data = to_arviz(model, MeanField(model), torch.randn(9, 2), torch.arange(9) % 3, num_samples=4)
    predicted = values(data, "posterior_predictive", "y")
    assert predicted.dtype == np.int64
    assert set(np.unique(predicted)) <= {0, 1, 2}
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "data")


def test_hierarchical_priors_and_constrained_sites() -> None:
    model = SupervisedModel(
        nn.Linear(2, 1), likelihoods.Normal(dist.LogNormal(0.0, 1.0)), priors.horseshoe(), num_data=5
    )
    data = to_arviz(model, MeanField(model), torch.randn(5, 2), torch.randn(5, 1), num_samples=20)
    assert set(data.posterior.data_vars) == set(MeanField(model).layout)
    assert data.posterior["net.weight.local_scale"].dims == ("chain", "draw", "net.out", "net.in")
    assert (values(data, "posterior", "likelihood.scale") > 0).all()
    assert (values(data, "prior", "net.weight.local_scale") > 0).all()


# ------------------------------------------------------------------------------------------- other posteriors


def test_several_guides_are_chains() -> None:
    model, x, y = small_network()
    first, second = MeanField(model), MeanField(model, init="prior")
    data = to_arviz(model, [first, second], x, y, num_samples=5)
    weight = values(data, "posterior", "net.0.weight")
    assert weight.shape[:2] == (2, 5)
    for chain, guide in enumerate((first, second)):  # sd 0.01: the draws tell whose they are
        center = guide.marginal("net.0.weight").mean.detach().numpy()
        assert np.abs(weight[chain] - center).max() < 0.1
    assert values(data, "log_likelihood", "y").shape == (2, 5, 20)
    assert values(data, "prior", "net.0.weight").shape[:2] == (1, 5)


def test_mcmc() -> None:
    case = Conjugate(num_data=30, dims=2)
    mcmc = MCMC(NUTS(case.model), num_samples=40, warmup_steps=20, num_chains=1, disable_progbar=True)
    with pytest.raises(ValueError, match=r"no draws yet; call its run\(\) first"):
        to_arviz(case.model, mcmc, case.x, case.y)
    mcmc.run(case.x, case.y)
    data = to_arviz(case.model, mcmc, case.x, case.y)
    np.testing.assert_array_equal(
        values(data, "posterior", "net.weight"), mcmc.get_samples(group_by_chain=True)["net.weight"].numpy()
    )
    assert values(data, "log_likelihood", "y").shape == (1, 40, 30)
    thinned = to_arviz(case.model, mcmc, case.x, case.y, num_samples=4, groups=["posterior"])
    np.testing.assert_array_equal(
        values(thinned, "posterior", "net.weight")[0],
        values(data, "posterior", "net.weight")[0, [0, 13, 26, 39]],
    )
    with pytest.raises(ValueError, match=r"num_samples: there are 40 draws per chain, got 41"):
        to_arviz(case.model, mcmc, case.x, case.y, num_samples=41)


def test_mcmc_chains_stay_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Conjugate(num_data=30, dims=2)
    mcmc = MCMC(NUTS(case.model), num_samples=2, warmup_steps=0, disable_progbar=True)
    chains = {"net.weight": torch.randn(3, 7, 1, 2, dtype=torch.float64)}  # three chains of seven draws
    monkeypatch.setattr(mcmc, "get_samples", lambda group_by_chain: chains)
    data = to_arviz(case.model, mcmc, case.x, case.y, groups=["posterior", "log_likelihood"])
    np.testing.assert_array_equal(values(data, "posterior", "net.weight"), chains["net.weight"].numpy())
    outputs = chains["net.weight"][..., 0, :] @ case.x.T
    expected = torch.distributions.Normal(outputs, NOISE).log_prob(case.y[:, 0])
    np.testing.assert_allclose(values(data, "log_likelihood", "y"), expected.numpy(), rtol=1e-6)


def test_stored_draws() -> None:
    case = Conjugate(num_data=30, dims=2)
    draws = case.guide().sample(9)
    data = to_arviz(case.model, draws, case.x, case.y)
    np.testing.assert_array_equal(values(data, "posterior", "net.weight")[0], draws["net.weight"].numpy())
    with pytest.raises(ValueError, match=r"posterior: expected equally many draws .* got \[8, 9\]"):
        to_arviz(case.model, [draws, {"net.weight": draws["net.weight"][:8]}], case.x, case.y)


class OwnModel(PyroModule):
    """Two observed sites, the second dependent on the first, a plate of its own name, and a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = bayesianize(nn.Linear(2, 1), dist.Normal(0.0, 1.0))

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        offset = pyro.sample("offset", dist.Normal(100.0, 1.0))
        mean = self.net(x)[:, 0] + offset
        pyro.factor("nothing", torch.tensor(0.0))
        with pyro.plate("patients", len(x)):
            first = pyro.sample("first", dist.Normal(mean, 1.0), obs=y)
            pyro.sample("second", dist.Normal(first, 0.1), obs=None if y is None else y)
        return mean


@pytest.mark.parametrize("family", [MeanField, AutoNormal])
def test_own_pyro_model(family: type) -> None:
    model, x, y = OwnModel(), torch.randn(6, 2), torch.zeros(6)
    guide = MeanField(model, example=(x, y)) if family is MeanField else AutoNormal(model)
    data = to_arviz(model, guide, x, y=y, num_samples=8)
    assert set(data.posterior.data_vars) == {"net.weight", "net.bias", "offset"}
    assert set(data.observed_data.data_vars) == {"first", "second"}
    assert data.log_likelihood["first"].dims == ("chain", "draw", "patients")
    predictive = data.prior_predictive
    # The predicted second follows the predicted first (about 100), not the observed one (0).
    difference = predictive["second"].values - predictive["first"].values
    assert (predictive["first"].values > 50).all()
    assert np.abs(difference).max() < 1.0  # ten standard deviations


# ------------------------------------------------------------------------------------------------- with ArviZ


def test_leave_one_out_and_waic() -> None:
    case = Conjugate()
    data = to_arviz(case.model, case.guide(), case.x, case.y, num_samples=1000)
    # The exact leave-one-out density of Gaussian regression: remove row i from the posterior, predict it.
    covariance = torch.diag(1 / case.precision)
    leverage = ((case.x @ covariance) * case.x).sum(1) / NOISE**2
    residual = (case.y[:, 0] - case.x @ case.mean) / (1 - leverage)
    scale = NOISE / (1 - leverage).sqrt()
    exact = torch.distributions.Normal(0.0, scale).log_prob(residual).sum().item()
    result = az.loo(data)
    estimate = getattr(result, "elpd_loo", None) or result.elpd
    # Monte Carlo error with 1000 independent draws: sqrt(sum_i var_i / S) < 0.07, taken four times.
    assert abs(estimate - exact) < 0.28
    if hasattr(az, "waic"):
        assert abs(az.waic(data).elpd_waic - exact) < 0.5  # WAIC is another estimator; agrees to order 1/N


@pytest.mark.filterwarnings("ignore::matplotlib.MatplotlibDeprecationWarning")  # ArviZ 0.x and a new matplotlib
def test_predictive_check_plot() -> None:
    case = Conjugate()
    data = to_arviz(case.model, case.guide(), case.x, case.y, num_samples=20)
    if hasattr(az, "plot_ppc"):
        axes = az.plot_ppc(data, num_pp_samples=10)
        assert np.ravel(axes)[0].lines
    else:
        assert "y" in az.plot_ppc_dist(data, num_samples=10, backend="matplotlib").viz["plot"].data_vars
    plt.close("all")


def test_netcdf_round_trip(tmp_path: Path) -> None:
    model, x, y = small_network()
    data = to_arviz(model, MeanField(model), x, y, num_samples=4)
    data.to_netcdf(str(tmp_path / "posterior.nc"))
    again = az.from_netcdf(str(tmp_path / "posterior.nc"))
    assert groups_of(again) == set(GROUPS)
    for group in GROUPS:
        before, after = getattr(data, group), getattr(again, group)
        if hasattr(after, "to_dataset"):  # a DataTree
            before, after = before.to_dataset(), after.to_dataset()
        assert after.identical(before)
    again.close()


# --------------------------------------------------------------------------------------- memory and mistakes


def test_sites_by_pattern() -> None:
    model, x, y = small_network()
    data = to_arviz(model, MeanField(model), x, y, num_samples=2, sites=["net.2.*"])
    assert set(data.posterior.data_vars) == {"net.2.weight", "net.2.bias"} == set(data.prior.data_vars)
    none = to_arviz(model, MeanField(model), x, y, num_samples=100, sites=[])
    assert groups_of(none) == set(GROUPS) - {"posterior", "prior"}
    assert az.loo(none, reff=1.0).n_data_points == 20
    assert values(none, "log_likelihood", "y").shape == (1, 100, 20)
    with pytest.raises(ValueError, match=r"sites: 'net.1.\*' matches no latent site; there are net.0.weight"):
        to_arviz(model, MeanField(model), x, y, sites=["net.1.*"])


def test_refuses_more_than_max_bytes_and_names_the_largest() -> None:
    model, x, y = small_network()
    size = 4 * 10 * 17  # bytes of 10 draws of the posterior: 4 * 2 + 4 + 4 + 1 weights
    made = to_arviz(model, MeanField(model), x, y, num_samples=10, groups=["posterior"], max_bytes=size)
    assert made.posterior.nbytes >= size
    with pytest.raises(ValueError, match=r"max_bytes: .* Largest parts: posterior/net.0.weight 0.00032 MB"):
        to_arviz(model, MeanField(model), x, y, num_samples=10, groups=["posterior"], max_bytes=size - 1)


def test_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model = SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=8)
    model.train()
    guide = MeanField(model)
    state = {name: value.clone() for name, value in {**model.state_dict(), **guide.state_dict()}.items()}
    trained = [(p, p.requires_grad) for p in (*model.parameters(), *guide.parameters())]
    to_arviz(model, guide, torch.randn(8, 2), torch.randn(8, 1), num_samples=3)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad == was for parameter, was in trained)
    for name, value in {**model.state_dict(), **guide.state_dict()}.items():
        assert torch.equal(value, state[name]), name


def test_mistakes_get_clear_errors() -> None:
    model, x, y = small_network()
    guide = MeanField(model)
    with pytest.raises(TypeError, match=r"posterior: expected a guide, .* got int"):
        to_arviz(model, 3, x, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="posterior: expected at least one guide"):
        to_arviz(model, [], x, y)
    with pytest.raises(ValueError, match="num_samples: expected a positive int, got 0"):
        to_arviz(model, guide, x, y, num_samples=0)
    with pytest.raises(ValueError, match="groups: 'posteriors' is unknown; choose from posterior, "):
        to_arviz(model, guide, x, y, groups=["posteriors"])
    with pytest.raises(ValueError, match="batch_size: expected a positive int, got 0"):
        to_arviz(model, guide, x, y, batch_size=0)
    with pytest.raises(ValueError, match=r"y: Normal expects targets of shape \(20, 1\).*got \(19, 1\)"):
        to_arviz(model, guide, x, y[:19])
    other = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=20)
    with pytest.raises(ValueError, match=r"^posterior: it lacks the model's site 'net.weight'"):
        to_arviz(other, guide, x, y)
    wider = SupervisedModel(
        nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Linear(1, 1)),
        likelihoods.Normal(1.0),
        dist.Normal(0.0, 1.0),
        num_data=20,
    )
    with pytest.raises(ValueError, match=r"^posterior: it lacks the model's site 'net.3.weight'"):
        to_arviz(wider, guide, x, y)
