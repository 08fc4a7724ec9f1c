"""Which predictor answers, and that batches, options and targets reach it."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods
from pyrobnn.guides import Laplace, MeanField
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import (
    GaussianPrediction,
    Prediction,
    PredictorOptions,
    WeightsPredictor,
    predict,
    predict_batches,
    predict_linearized,
)

FIELDS = ("mean", "total", "aleatoric", "epistemic")


def fitted(likelihood: Likelihood | None = None, structure: Any = "full") -> tuple[SupervisedModel, Laplace, Tensor]:
    """A small network with its Laplace posterior, and inputs."""
    torch.manual_seed(0)
    x = torch.randn(12, 3).double()
    classes = likelihood is None
    y = torch.arange(12) % 3 if classes else torch.randn(12, 3).double()
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    model = SupervisedModel(net, likelihood or likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=12).double()
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    return model, Laplace(model, structure=structure).double().fit(model, loader), x


def assert_equal(a: Prediction, b: Prediction) -> None:
    assert type(a) is type(b)
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("structure", ["full", "kronecker", "diagonal"])
def test_laplace_over_hidden_layers_is_linearized_by_default(structure: str) -> None:
    model, laplace, x = fitted(structure=structure)
    assert laplace.facts.predictor == "linearized"
    found = predict(model, laplace, x, 50, seed=1)
    assert_equal(found, predict_linearized(model, laplace, x, 50, seed=1))
    assert_equal(found, predict(model, laplace, x, 50, seed=1, predictor="linearized"))
    plain = predict(model, laplace, x, 50, seed=1, predictor="weights")
    assert_equal(plain, predict(model, _pinned(laplace, 50, 1), x, 50))
    assert float((plain.mean - found.mean).abs().max()) > 0.01, "the two differ, so the default matters"


def test_draws_that_lack_a_site_are_refused_wherever_they_are_given() -> None:
    """They would be drawn from the prior."""
    model, laplace, x = fitted()
    draws = {name: value for name, value in laplace.sample(3).items() if name != "net.2.bias"}
    for make in (predict, WeightsPredictor):
        with pytest.raises(ValueError, match=r"^guide: it lacks the model's site 'net.2.bias'"):
            make(model, draws, x if make is predict else PredictorOptions(3))  # type: ignore[operator]


def test_the_last_layer_is_drawn_and_the_two_agree() -> None:
    """Outputs are linear in the last layer: the same draws of the weights give the same prediction either way."""
    model, laplace, x = fitted(structure="last_layer")
    assert laplace.facts.predictor == "weights"
    found = predict(model, laplace, x, 30, seed=1)
    assert_equal(found, predict(model, laplace, x, 30, seed=1, predictor="weights"))
    assert_equal(found, predict(model, laplace, x, 30, seed=1, predictor="linearized"))


def _pinned(laplace: Laplace, num_samples: int, seed: int) -> dict[str, Tensor]:
    """The draws that predictions with this seed are made of."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return laplace.sample(num_samples)


def test_draws_are_those_of_the_linearized_network() -> None:
    """``f(x; ŵ) + J(x) (w_k - ŵ)`` by differences of the plain network, whose error is of second order."""
    model, laplace, x = fitted(likelihoods.Normal(0.5))
    found = predict(model, laplace, x, 5, seed=3, return_draws=True)
    assert found.draws is not None
    draws, mode = _pinned(laplace, 5, 3), laplace.mode()

    def outputs(index: int, step: float) -> Tensor:
        moved = {n.removeprefix("net."): mode[n] + step * (draws[n][index] - mode[n]) for n in mode}
        return functional_call(model.net.network, moved, x)

    for index in range(5):
        change = (outputs(index, 1e-4) - outputs(index, -1e-4)) / 2e-4
        torch.testing.assert_close(found.draws[index], outputs(index, 0.0) + change, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.mean, found.draws.mean(0))


def test_gaussian_targets_have_a_closed_form_unless_draws_are_asked_for() -> None:
    """20 000 draws against it: means and variances within four standard errors."""
    model, laplace, x = fitted(likelihoods.Normal(0.5))
    exact = predict(model, laplace, x)
    assert isinstance(exact, GaussianPrediction)
    drawn = predict(model, laplace, x, 20_000, seed=0, return_draws=True)
    assert not isinstance(drawn, GaussianPrediction)
    error = (exact.epistemic / 20_000).sqrt()
    assert float(((drawn.mean - exact.mean).abs() / error).max()) < 4
    assert float((drawn.epistemic / exact.epistemic - 1).abs().max()) < 4 * (2 / 20_000) ** 0.5


@pytest.mark.parametrize("max_bytes", [256 * 2**20, 20_000])
@pytest.mark.parametrize("likelihood", [None, likelihoods.Normal(0.5), likelihoods.Poisson()])
def test_any_batching_gives_the_same(likelihood: Likelihood | None, max_bytes: int) -> None:
    model, laplace, x = fitted(likelihoods.Normal(0.5))
    options: dict[str, Any] = {"seed": 2, "likelihood": likelihood or likelihoods.Categorical()}
    whole = predict(model, laplace, x, 9, **options)
    loader = DataLoader(TensorDataset(x, torch.arange(12)), batch_size=5)
    for data in (x, loader, [*x.split(7)]):
        assert_equal(predict(model, laplace, data, 9, max_bytes=max_bytes, **options), whole)
    parts = [*predict_batches(model, laplace, loader, 9, **options)]
    assert [len(part) for part, _ in parts] == [5, 5, 2]
    assert_equal(Prediction.join([part for part, _ in parts]), whole)
    found = predict(model, laplace, loader, 9, **options)
    assert found.targets is not None and torch.equal(found.targets, torch.arange(12))


def test_probit_by_predict() -> None:
    model, laplace, x = fitted()
    found = predict(model, laplace, x, 20, link="probit", seed=1)
    assert_equal(found, predict_linearized(model, laplace, x, 20, link="probit", seed=1))
    y = torch.arange(12) % 3
    torch.testing.assert_close(found.log_prob(y), found.mean.gather(-1, y.unsqueeze(1)).squeeze(1).log())


def test_a_seed_leaves_the_random_state_alone_and_the_model_is_as_it_was() -> None:
    model, laplace, x = fitted()
    model.train()
    before = torch.get_rng_state()
    predict(model, laplace, x, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_a_predictor_of_ones_own() -> None:
    """A single pass through the network, whatever the guide, reduced as the likelihood says."""
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    weight = torch.randn(2, 3)
    seen: list[PredictorOptions] = []

    def single_pass(model: nn.Module, guide: Any, options: PredictorOptions) -> Any:
        seen.append(options)

        def predicted(x: Any, targets: Tensor | None = None) -> Prediction:
            assert isinstance(model, SupervisedModel)
            reduction = model.likelihood.reduction(1, keep=options.return_draws, max_bytes=options.max_bytes)
            reduction.add({n: v.unsqueeze(0) for n, v in reduction.summary(x @ weight.T).items()})
            return reduction.finish(targets)

        return predicted

    x = torch.randn(5, 3)
    found = predict(
        model, MeanField(model), [(x[:2], torch.zeros(2)), (x[2:], torch.ones(3))], 7, predictor=single_pass
    )
    torch.testing.assert_close(found.mean, (x @ weight.T).softmax(-1))
    assert found.targets is not None and found.targets.tolist() == [0, 0, 1, 1, 1]
    assert seen[0].num_samples == 7 and seen[0].replayed


def test_refusals() -> None:
    model, laplace, x = fitted()
    with pytest.raises(
        ValueError, match=r"predictor: expected 'weights' or .*'gaussian_process', or a function .*'glm'"
    ):
        predict(model, laplace, x, predictor="glm")
    with pytest.raises(TypeError, match="guide: MeanField declares no linearization, as Laplace does"):
        predict(model, MeanField(model), x, predictor="linearized")
    with pytest.raises(ValueError, match="link: expected 'probit' or 'samples'"):
        predict(model, laplace, x, link="logit")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no curvature yet"):
        predict(model, Laplace(model, structure="full"), x)
    with pytest.raises(ValueError, match="data: it holds no inputs"):
        predict(model, laplace, x[:0])
