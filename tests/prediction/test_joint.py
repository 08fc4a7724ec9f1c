"""Functions at a set of inputs: conjugate regression, empirical moments, targets, refusals, decisions."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.decisions import NeuralRewards
from pyrobnn.guides import DeltaMixture, Laplace, MeanField
from pyrobnn.prediction import GaussianPrediction, JointPrediction, PredictorOptions
from pyrobnn.prediction.joint import function_at
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.monte_carlo import Z, z_of_mean


def exact_posterior() -> tuple[ConjugateRegression, Any, Laplace]:
    data = ConjugateRegression()
    model = data.model()
    mode = {"net.weight": data.mean[:-1].unsqueeze(0), "net.bias": data.mean[-1:]}
    return data, model, Laplace(model, mode, structure="full").double().fit(model, [(data.x, data.y)])


def two_outputs(structure: Any = "full") -> tuple[Any, Laplace, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=20).double()
    x = torch.randn(20, 3).double()
    return model, Laplace(model, structure=structure).double().fit(model, [(x, x[:, :2].sin())]), x


def test_linearized_covariance_is_that_of_the_conjugate_posterior() -> None:
    """Mean, covariance, targets of 7 inputs; 4,000 functions have these moments (z below 5)."""
    data, model, guide = exact_posterior()
    x = 3 * torch.randn(7, data.dim, generator=torch.Generator().manual_seed(1)).double()
    features = torch.cat([x, torch.ones(7, 1).double()], 1)
    covariance = features @ torch.linalg.inv(data.precision) @ features.T
    found = pb.predict_joint(model, guide, x, 4000, predictor="linearized", seed=0)
    close = {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(found.mean, (features @ data.mean).unsqueeze(1), **close)
    torch.testing.assert_close(found.covariance, covariance, **close)
    torch.testing.assert_close(found.covariance_by_output, covariance.unsqueeze(0), **close)
    torch.testing.assert_close(found.variance, covariance.diagonal().unsqueeze(1), **close)
    torch.testing.assert_close(found.target_mean, found.mean)
    noisy = covariance + data.noise**2 * torch.eye(7).double()
    torch.testing.assert_close(found.target_covariance, noisy, **close)
    for functions in (found.draws, found.sample(4000, seed=3)):
        centered = (functions - found.mean).squeeze(2)
        assert z_of_mean(centered, torch.zeros(7).double()) < Z
        assert z_of_mean(centered.unsqueeze(2) * centered.unsqueeze(1), covariance) < Z


@pytest.mark.parametrize("structure", ["full", "diagonal", "kronecker"])
def test_linearized_covariance_between_outputs_and_inputs(structure: str) -> None:
    """J Σ Jᵀ by brute force, with Jacobians of autograd and Σ of 40,000 draws of the weights (z below 5)."""
    model, guide, x = two_outputs(structure)
    x = x[:4]
    found = pb.predict_joint(model, guide, x, 3, seed=0)
    mode = {name.removeprefix("net."): value for name, value in guide.mode().items()}

    def run(flat: Tensor) -> Tensor:
        pieces = flat.split([value.numel() for value in mode.values()])
        weights = {name: p.view_as(v) for (name, v), p in zip(mode.items(), pieces, strict=True)}
        return torch.func.functional_call(model.net.network, weights, x).flatten()

    flat = torch.cat([value.flatten() for value in mode.values()])
    jacobian = torch.autograd.functional.jacobian(run, flat)
    torch.manual_seed(0)
    draws = guide.sample(40_000)
    steps = torch.cat([draws[f"net.{name}"].flatten(1) for name in mode], 1) - flat
    moved = steps @ jacobian.mT
    assert z_of_mean(moved.unsqueeze(2) * moved.unsqueeze(1), found.covariance) < Z
    torch.testing.assert_close(found.mean.flatten(), run(flat))
    by_output = found.covariance.reshape(4, 2, 4, 2)
    torch.testing.assert_close(found.covariance_by_output[1], by_output[:, 1, :, 1])


def test_draws_of_the_covariance_and_budgets_agree() -> None:
    """The functions do not depend on how their Jacobians are computed."""
    model, guide, x = two_outputs()
    exact = pb.predict_joint(model, guide, x, 6, seed=2)
    loose = pb.predict_joint(model, guide, x, 6, seed=2, exact=False)
    tight = pb.predict_joint(model, guide, x, 6, seed=2, exact=False, max_bytes=400)
    for other in (loose, tight):
        torch.testing.assert_close(other.draws, exact.draws)
    centered = loose.draws.flatten(1) - loose.draws.flatten(1).mean(0)
    torch.testing.assert_close(loose.covariance, centered.T @ centered / 6)
    assert loose.exact_covariance is None and exact.exact_covariance is not None
    with pytest.raises(ValueError, match=r"^max_bytes: the exact covariance of 20 inputs .* exact=False"):
        pb.predict_joint(model, guide, x, 6, max_bytes=400)


def test_functions_of_members_are_whole_networks() -> None:
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Linear(2, 3), pb.likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=5)
    guide = DeltaMixture(model, 4, init="prior")
    x = torch.randn(6, 2)
    found = pb.predict_joint(model, guide, x, 50, seed=0)
    members = guide.atoms(torch.arange(4))
    networks = torch.stack([x @ members["net.weight"][m].T + members["net.bias"][m] for m in range(4)])
    distances = (found.draws.unsqueeze(1) - networks).abs().flatten(2).amax(2)
    assert bool((distances.min(1).values < 1e-5).all())
    again = found.sample(7, seed=1)
    assert again.shape == (7, 6, 3)
    assert bool(((again.unsqueeze(1) - found.draws).abs().flatten(2).amax(2).min(1).values == 0).all())
    whole = found.covariance.reshape(6, 3, 6, 3)
    torch.testing.assert_close(found.covariance_by_output, whole.diagonal(dim1=1, dim2=3).movedim(-1, 0))
    torch.testing.assert_close(found.variance.flatten(), found.covariance.diagonal())
    torch.testing.assert_close(found.target_covariance, found.covariance + 0.25 * torch.eye(18))
    torch.testing.assert_close(found.target_mean, found.mean)


def test_targets_of_noise_that_depends_on_the_function() -> None:
    """Total covariance of a mixture, against its 400,000 draws (z below 5)."""
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Linear(1, 2), pb.likelihoods.HeteroscedasticNormal(), num_data=3).double()
    found = pb.predict_joint(model, MeanField(model, init_scale=0.5).double(), torch.randn(3, 1).double(), 5, seed=0)
    given = model.likelihood.distribution(found.parameters)
    chosen = torch.randint(5, (100_000,))
    y = given.mean[chosen] + given.variance.sqrt()[chosen] * torch.randn(100_000, *given.mean.shape[1:]).double()
    centered = (y - found.target_mean).flatten(1)
    assert z_of_mean(centered, torch.zeros(centered.shape[1]).double()) < Z
    assert z_of_mean(centered.unsqueeze(2) * centered.unsqueeze(1), found.target_covariance) < Z


def test_classes_have_functions_but_no_target_moments() -> None:
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Linear(2, 3), pb.likelihoods.Categorical(), num_data=5)
    x = torch.randn(4, 2)
    guide = MeanField(model)
    found = pb.predict_joint(model, guide, x, 8, seed=0)
    torch.testing.assert_close(found.expectations, found.draws.softmax(-1))
    torch.testing.assert_close(found.expectations.mean(0), pb.predict(model, guide, x, 8, seed=0).mean)
    for name in ("target_mean", "target_covariance"):
        with pytest.raises(TypeError, match=r"^target: classes have no mean"):
            getattr(found, name)


def test_a_seed_fixes_the_functions_at_all_inputs() -> None:
    model, guide, x = two_outputs()
    before = torch.get_rng_state()
    whole = pb.predict_joint(model, guide, x, 2, seed=4).draws
    torch.testing.assert_close(pb.predict_joint(model, guide, x[5:7], 2, seed=4).draws, whole[:, 5:7])
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(
        function_at(model, guide, x[:3], seed=4), pb.predict_joint(model, guide, x[:3], 1, seed=4).draws[0]
    )


def test_one_function_a_decision_is_linearized_for_laplace() -> None:
    """Rewards of 1,000 functions have the linearized mean and covariance, which those of weights have not."""
    model, guide, x = two_outputs()
    rewards = NeuralRewards.__new__(NeuralRewards)
    rewards.model, rewards.guide = model, guide
    expected = pb.predict_joint(model, guide, x[:1], 1)
    torch.manual_seed(0)
    functions = torch.stack([rewards.sample(x[0]) for _ in range(1000)])
    centered = functions - expected.mean[0]
    assert z_of_mean(centered, torch.zeros(2).double()) < Z
    assert z_of_mean(centered.unsqueeze(2) * centered.unsqueeze(1), expected.covariance) < Z


def test_draws_of_chains_are_chosen_at_random() -> None:
    """Each of three draws is taken in 60 functions."""
    model = pb.SupervisedModel(nn.Linear(1, 1), pb.likelihoods.Normal(0.5), num_data=3)
    draws = {"net.weight": torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1), "net.bias": torch.zeros(3, 1)}
    torch.manual_seed(0)
    found = {round(float(function_at(model, draws, torch.ones(1, 1)))) for _ in range(60)}
    assert found == {1, 2, 3}


def test_refusals() -> None:
    model, guide, x = two_outputs()
    for options, kind, name in (
        ({"inputs": [x]}, TypeError, "inputs"),
        ({"inputs": x[:0]}, ValueError, "inputs"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"exact": 1}, TypeError, "exact"),
        ({"method": "fast"}, ValueError, "method"),
        ({"predictor": "glm"}, ValueError, "predictor"),
        ({"predictor": lambda model, guide, options: lambda x: None}, TypeError, "predictor"),
        ({"guide": 3}, TypeError, "guide"),
        ({"max_bytes": 0}, ValueError, "max_bytes"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ):
        given: dict[str, Any] = {"model": model, "guide": guide, "inputs": x} | options
        with pytest.raises(kind, match=rf"^{name}: "):
            pb.predict_joint(**given)

    class Marginals(pb.prediction.Predictor):
        def __init__(self, model: nn.Module, guide: Any, options: PredictorOptions) -> None:
            pass

        def __call__(self, x: Any, targets: Tensor | None = None) -> Any:
            raise AssertionError

    with pytest.raises(NotImplementedError, match=r"^predictor: Marginals has marginals only"):
        pb.predict_joint(model, guide, x, predictor=Marginals)
    found = pb.predict_joint(model, guide, x[:2], 3, seed=0)
    assert isinstance(found, JointPrediction) and isinstance(found.exact_targets, GaussianPrediction)
    with pytest.raises(ValueError, match=r"^num_samples: "):
        found.sample(0)
    found.exact_covariance = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double().repeat(2, 2)
    with pytest.raises(ValueError, match=r"^covariance: it is not positive semi-definite \(the smallest .* is -2"):
        found.sample(2)
