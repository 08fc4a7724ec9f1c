"""Simulation-based calibration: it passes the exact posterior and fails those that are wrong in known ways."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import likelihoods
from pyrobnn.diagnostics import SimulationBasedCalibration, sbc
from pyrobnn.guides import MAP, DeltaMixture, Laplace, MeanField
from pyrobnn.guides.base import Guide
from tests.diagnostics.models import NOISE, Conjugate, set_parameters

PROBLEM = Conjugate(20, 3)


def exact(model: Any, data: tuple[Tensor, ...], width: float = 1.0, shift: float = 0.0) -> MeanField:
    """The posterior of the conjugate regression, with a fault if requested: wider, or off by so many deviations."""
    x, y = data
    scale = PROBLEM.precision.rsqrt()
    mean = (x * y).sum(0) / NOISE**2 / PROBLEM.precision
    return set_parameters(MeanField(model), mean + shift * scale, width * scale)


def run(infer: Callable[..., Any] = exact, **options: Any) -> SimulationBasedCalibration:
    options = {"num_simulations": 150, "num_samples": 19, "inputs": PROBLEM.x, "seed": 1, "progress": False} | options
    return sbc(PROBLEM.model, infer, **options)


# ------------------------------------------------------------------------------------------- known answers


@pytest.mark.statistical
def test_the_exact_posterior_passes() -> None:
    """150 simulations, five quantities: a correct inference would fail with probability 0.01."""
    result = run()
    assert result.names == ("f(x_0)", "f(x_6)", "f(x_13)", "f(x_19)", "log likelihood")
    assert result.ranks.shape == (150, 5)
    assert int(result.ranks.min()) >= 0
    assert int(result.ranks.max()) <= 19
    assert result.counts.sum(1).tolist() == [150] * 5
    assert result.passed()
    assert str(result).startswith("calibrated as far as these tell: 150 simulations")


FAULTS = {"too narrow": {"width": 0.4}, "too wide": {"width": 2.5}, "biased": {"shift": 1.0}}


def weights(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"weight": values["net.weight"]}


@pytest.mark.statistical
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_posteriors_fail_and_are_told_apart(fault: str) -> None:
    result = run(lambda model, data: exact(model, data, **FAULTS[fault]), quantities=weights)
    assert result.names == ("weight[0]", "weight[1]", "weight[2]")
    assert result.p_value < 1e-6
    assert not result.passed()
    assert fault in str(result)


@pytest.mark.statistical
def test_the_verdict_is_that_of_outputs_though_the_log_likelihood_is_ranked() -> None:
    """150 simulations of the default quantities; the log likelihood's ranks lean to one side."""
    result = run(lambda model, data: exact(model, data, width=0.6), num_simulations=150)
    assert int(result.p_values.argmin()) == result.names.index("log likelihood")
    assert "the posterior of f(x_" in str(result) and " is too narrow;" in str(result)


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("width", "shift", "verdict"), [(0.6, 0.0, "too narrow"), (1.6, 0.0, "too wide"), (1.0, 0.6, "biased")]
)
def test_verdicts_on_normal_posteriors(width: float, shift: float, verdict: str, seed: int) -> None:
    """300 true values of a normal posterior among 99 draws of one of another width, or off by so many deviations."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(300, 1, 1, generator=generator)
    drawn = shift + width * torch.randn(300, 1, 99, generator=generator)
    result = SimulationBasedCalibration(("f",), (drawn < truth).sum(-1), 99, 10)
    assert str(result).startswith(f"not calibrated: the posterior of f is {verdict};")


def uniform_ranks(seed: int, change: Callable[[Tensor], Tensor] = lambda u: u) -> SimulationBasedCalibration:
    """Ranks of two outputs and the log likelihood in 200 simulations, the last changed by a function of u."""
    u = torch.rand(200, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u[:, 2] = change(u[:, 2])
    return SimulationBasedCalibration(("f(x_0)", "f(x_1)", "log likelihood"), (u * 20).long(), 19, 10)


@pytest.mark.statistical
def test_a_correct_inference_fails_as_often_as_stated() -> None:
    """2,000 tables of uniform ranks at level 0.05: Bonferroni fails at most 0.05 and, for three, hardly fewer.

    The standard error is 0.005; z = 4 is 0.02.
    """
    share = sum(not uniform_ranks(seed).passed(0.05) for seed in range(2_000)) / 2_000
    assert 0.03 < share < 0.07


def test_the_log_likelihood_alone_fails_without_a_verdict() -> None:
    result = uniform_ranks(0, lambda u: u**2)
    assert not result.passed()
    assert str(result).startswith("not calibrated: seen in the log likelihood's ranks alone, which do not say how; 200")


@pytest.mark.statistical
def test_the_log_likelihood_sees_what_marginals_do_not() -> None:
    """An inference that ignores the data and returns the prior has uniform ranks of weights (Modrák et al. 2023)."""

    def prior(model: Any, data: Any) -> MeanField:
        return set_parameters(MeanField(model), torch.zeros(3).double(), torch.ones(3).double())

    assert run(prior, quantities=weights).passed()
    assert run(prior, num_simulations=60).p_value < 1e-6


@pytest.mark.statistical
def test_laplace_is_exact_for_linear_regression_with_correlated_inputs() -> None:
    """100 simulations; the posterior has correlations that a factorized one lacks."""
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(3)).double()
    x[:, 1] += 2.0 * x[:, 0]
    model = pb.SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=12).double()

    def laplace(model: Any, data: tuple[Tensor, ...]) -> Guide:
        features = torch.cat([data[0], torch.ones(12, 1).double()], 1)
        precision = features.T @ features / 0.25 + torch.eye(3)
        mode = torch.linalg.solve(precision, features.T @ data[1] / 0.25).squeeze(-1)
        guide = Laplace(model, {"net.weight": mode[None, :2], "net.bias": mode[2:]}, structure="full").double()
        return guide.fit(model, [data]).eval()

    assert sbc(model, laplace, 100, inputs=x, num_samples=19, seed=2, progress=False).passed()


def test_the_inference_may_set_seeds() -> None:
    """Simulations differ although each inference starts from the same random state."""
    seen = []

    def infer(model: Any, data: tuple[Tensor, ...]) -> MeanField:
        pyro.set_rng_seed(0)
        seen.append(data[1])
        return exact(model, data)

    found = run(infer, num_simulations=20, num_bins=4)
    assert len({float(y.sum()) for y in seen}) == 20
    assert torch.equal(found.ranks, run(infer, num_simulations=20, num_bins=4).ranks)
    draws = {tuple(row) for row in found.ranks.tolist()}
    assert len(draws) > 10


def test_ties_are_broken_at_random() -> None:
    """A quantity that is the same everywhere has uniform ranks, whatever the inference."""
    result = run(quantities=lambda values: {"one": torch.ones(())})
    assert result.passed(1e-4)
    assert len(result.ranks.unique()) == 20


# ------------------------------------------------------------------------------------- models and posteriors


class Own(PyroModule):
    """A model of a user's own, whose observation has another name and that returns nothing."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Draws or scores the observations."""
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(slope * x, 0.5), obs=y)


def slope(model: Any, data: tuple[Tensor, ...]) -> dict[str, Tensor]:
    x, y = data
    precision = 1.0 + x.square().sum() / 0.25
    return {"slope": (x * y).sum() / 0.25 / precision + torch.randn(40) / precision.sqrt()}


@pytest.mark.statistical
def test_models_and_draws_from_elsewhere() -> None:
    result = sbc(
        Own(), slope, 100, inputs=torch.linspace(-1, 1, 6), observed="obs", num_samples=19, progress=False, seed=3
    )
    assert result.names == ("log likelihood", "slope")
    assert result.passed()


def test_each_simulation_has_a_model_of_its_own() -> None:
    before = copy.deepcopy(PROBLEM.model.state_dict())
    models = []

    def infer(model: Any, data: tuple[Tensor, ...]) -> MeanField:
        models.append(model)
        guide = exact(model, data)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.zero_()
        return guide

    run(infer, num_simulations=10, num_bins=2, quantities=weights)
    assert len({id(model) for model in models} - {id(PROBLEM.model)}) == 10
    for name, tensor in PROBLEM.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_plots() -> None:
    plt.switch_backend("Agg")
    result = run(num_simulations=50)
    ax = result.plot()
    assert ax.get_title().startswith(result.names[int(result.p_values.argmin())])
    assert "log likelihood" in result.plot("log likelihood", kind="histogram").get_title()
    with pytest.raises(ValueError, match="name: there is no quantity 'f'; choose from"):
        result.plot("f")
    with pytest.raises(ValueError, match="kind: expected 'ecdf' or 'histogram'"):
        result.plot(kind="pie")  # type: ignore[arg-type]
    plt.close("all")


# --------------------------------------------------------------------------------------------------- mistakes


BAD = [
    ({"num_bins": 7}, ValueError, r"num_bins: expected at least 2 that divide num_samples \+ 1 = 20, got 7"),
    ({"num_bins": 1}, ValueError, "num_bins: expected at least 2"),
    (
        {"num_simulations": 40},
        ValueError,
        "num_simulations: the test needs 50 for 10 bins, got 40",
    ),
    ({"num_samples": 0}, ValueError, "num_samples: expected a positive int"),
    ({"inputs": PROBLEM.x[:5]}, ValueError, "inputs: the model was built with num_data=20, but there are 5 rows"),
    ({"observed": "z"}, ValueError, "observed: the model drew no site 'z'"),
    ({"infer": lambda model, data: 3}, TypeError, "infer: expected it to return a guide, draws"),
    ({"infer": lambda model, data: {}}, ValueError, "num_samples: the posterior has 0 draws"),
    (
        {"infer": lambda m, d: DeltaMixture(m, 3, "prior")},
        ValueError,
        "num_samples: the posterior has 3 draws, fewer than",
    ),
    ({"infer": lambda m, d: {"other": torch.zeros(30)}}, ValueError, "infer: the posterior it returned lacks the site"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_mistakes_get_clear_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(**options)


def test_a_point_estimate_fails() -> None:
    def least_squares(model: Any, data: tuple[Tensor, ...]) -> MAP:
        return MAP(model, {"net.weight": torch.linalg.lstsq(*data).solution.T})

    assert run(least_squares, num_simulations=50, quantities=weights).p_value < 1e-6
