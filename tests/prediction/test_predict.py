"""Predictions against closed form and Pyro, and what must not matter: batching, method, budget."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods, priors
from pyrobnn.guides import MAP, MeanField
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import Prediction, predict, predict_batches
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_models import CASES, Case
from tests.conformance.monte_carlo import Z, z_of_mean, z_of_means

SUPERVISED = [case for case in CASES if isinstance(case.model(), SupervisedModel)]
FIELDS = ("mean", "total", "aleatoric", "epistemic", "variation_ratio")


def fitted(case: Case, dtype: torch.dtype = torch.float64) -> tuple[SupervisedModel, Guide, Tensor]:
    """A model, a guide wide enough for draws to differ, and inputs."""
    model = case.model().to(dtype)
    assert isinstance(model, SupervisedModel)
    for module in model.modules():  # running statistics that are not the starting ones
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    guide = MeanField(model, init_scale=0.3).to(dtype)
    return model, guide, case.batch()[0].to(dtype)


def assert_alike(a: Prediction, b: Prediction, tolerance: float) -> None:
    """Equality of all that a prediction says."""
    for name in FIELDS:
        u, v = getattr(a, name), getattr(b, name)
        assert (u is None) == (v is None)
        if u is not None:
            torch.testing.assert_close(u, v, rtol=tolerance, atol=tolerance, msg=lambda t, name=name: f"{name}: {t}")


# ------------------------------------------------------------------------------------------------- closed form


@pytest.mark.statistical
def test_regression_is_the_closed_form() -> None:
    """4,000 draws of the optimal factorized posterior: mean, variances and mixture density, within z = 5."""
    problem = ConjugateRegression()
    model = problem.model()
    x = problem.x[:8]
    prediction = predict(model, problem.optimal_guide(model), x, 4000, seed=0, return_draws=True)
    features = problem.features[:8]
    mean = features @ problem.mean
    epistemic = features.square() @ problem.mean_field_variance
    draws = prediction.draws.squeeze(-1)
    assert z_of_mean(draws, mean) < Z
    assert z_of_mean((draws - mean).square(), epistemic) < Z
    torch.testing.assert_close(prediction.mean.squeeze(-1), draws.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.epistemic.squeeze(-1), draws.var(0, correction=0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.aleatoric, torch.full_like(prediction.mean, 0.49), rtol=1e-6, atol=0.0)
    y = problem.y[:8]
    density = dist.Normal(mean, (epistemic + 0.49).sqrt()).log_prob(y.squeeze(-1)).exp()
    by_draw = dist.Normal(draws, 0.7).log_prob(y.squeeze(-1)).exp()
    assert z_of_mean(by_draw, density) < Z
    torch.testing.assert_close(prediction.log_prob(y).exp(), by_draw.mean(0), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("case", SUPERVISED, ids=str)
def test_total_is_aleatoric_plus_epistemic(case: Case) -> None:
    prediction = predict(*fitted(case), 30, seed=0)
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic, rtol=1e-9, atol=1e-12)
    assert float(prediction.epistemic.min()) > 0.0
    assert prediction.num_samples == 30
    assert len(prediction) == 12


def test_a_point_estimate_has_no_epistemic_part() -> None:
    model, _, x = fitted(SUPERVISED[0])
    prediction = predict(model, MAP(model).double(), x, 5)
    torch.testing.assert_close(prediction.mean, model.net.network(x).softmax(-1), rtol=1e-9, atol=1e-9)
    assert float(prediction.epistemic.abs().max()) < 1e-12
    assert float(prediction.variation_ratio.max()) == 0.0


# -------------------------------------------------------------------------------------------------------- Pyro


@pytest.mark.statistical
@pytest.mark.parametrize("case", SUPERVISED, ids=str)
def test_equal_to_pyros_predictive_in_distribution(case: Case) -> None:
    """The moments over draws of what each predicts, 400 draws on either side, within z = 5."""
    model, guide, x = fitted(case)
    model.eval()
    ours = predict(model, guide, x, 400, seed=1, return_draws=True).draws
    outputs = pyro.infer.Predictive(model, guide=guide, num_samples=400, return_sites=["_RETURN"])(x)["_RETURN"]
    theirs = outputs.softmax(-1) if isinstance(model.likelihood, likelihoods.ClassLikelihood) else outputs
    assert ours.shape == theirs.shape
    assert z_of_means(ours, theirs) < Z
    assert z_of_means(ours.square(), theirs.square()) < Z


# ---------------------------------------------------------------------------------------------- loop and vmap


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", SUPERVISED, ids=str)
def test_loop_and_vmap_are_equal(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    model, guide, x = fitted(case, dtype)
    loop, vmap = (predict(model, guide, x, 7, seed=2, method=method, return_draws=True) for method in ("loop", "vmap"))
    assert_alike(loop, vmap, tolerance)
    torch.testing.assert_close(loop.draws, vmap.draws, rtol=tolerance, atol=tolerance)
    if not isinstance(model.likelihood, likelihoods.ClassLikelihood):
        torch.testing.assert_close(loop.noise, vmap.noise, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("max_bytes", [1, 5_000, 100_000])
def test_vmap_in_chunks_under_a_budget(max_bytes: int) -> None:
    """However few draws or rows run at once, down to one."""
    model, guide, x = fitted(SUPERVISED[-1])
    loop, vmap = (
        predict(model, guide, x, 7, seed=2, method=method, max_bytes=max_bytes) for method in ("loop", "vmap")
    )
    assert_alike(loop, vmap, 1e-12)


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_latent_noise_varies_from_draw_to_draw(method: Any) -> None:
    """Each draw's noise variance is the square of the scale it drew."""
    model, guide, x = fitted(next(case for case in SUPERVISED if str(case) == "latent_noise"))
    draws = guide.sample(5)
    prediction = predict(model, draws, x, 5, method=method, return_draws=True)
    expected = draws["likelihood.scale"].square().reshape(5, 1, 1).expand_as(prediction.noise)
    torch.testing.assert_close(prediction.noise, expected, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(prediction.aleatoric, expected.mean(0), rtol=1e-9, atol=0.0)


# -------------------------------------------------------------------------------------------------------- pinned


def batched(x: Tensor, size: int) -> DataLoader:
    """A loader of pairs."""
    return DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=size)


@pytest.mark.parametrize("method", ["loop", "vmap"])
@pytest.mark.parametrize("max_bytes", [256 * 2**20, 400], ids=["kept", "replayed"])
def test_any_batching_gives_the_same(method: Any, max_bytes: int) -> None:
    """A tensor, loaders, a list of inputs, a generator: one and the same functions, kept or drawn anew."""
    model, guide, x = fitted(SUPERVISED[-1])
    run = functools.partial(predict, model, guide, num_samples=9, seed=3, method=method, max_bytes=max_bytes)
    whole = run(x)
    for data in (batched(x, 1), batched(x, 5), batched(x, 12), [*x.split(7)], (part for part in x.split(4))):
        assert_alike(run(data), whole, 1e-12)
    assert torch.equal(run(batched(x, 5)).targets, torch.arange(12))
    assert whole.targets is None


def test_long_inputs_are_cut_into_blocks() -> None:
    """More rows than a block (8192) and than a chunk (256) has."""
    net = nn.Sequential(nn.Linear(2, 3))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5).double()
    guide = MeanField(model, init_scale=0.5).double()
    x = torch.randn(8500, 2).double()
    whole = predict(model, guide, x, 3, seed=0)
    assert whole.mean.shape == (8500, 3)
    torch.testing.assert_close(predict(model, guide, x[8190:8195], 3, seed=0).mean, whole.mean[8190:8195])


@pytest.mark.parametrize("num_samples", [1, 2, 7, 64])
def test_draws_that_do_not_fit_are_the_ones_that_do(num_samples: int) -> None:
    """The budget for kept draws is half of ``max_bytes``: kept or replayed, in chunks of the same size."""
    model, guide, x = fitted(SUPERVISED[0])
    kept = predict(model, guide, batched(x, 12), num_samples, seed=3, max_bytes=2**20)
    replayed = predict(model, guide, batched(x, 3), num_samples, seed=3, max_bytes=2**20)
    assert_alike(kept, replayed, 1e-12)


def test_a_seed_fixes_the_draws_and_leaves_the_random_state_alone() -> None:
    model, guide, x = fitted(SUPERVISED[0])
    before = torch.get_rng_state()
    a, b, c = (predict(model, guide, x, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.mean, b.mean)
    assert not torch.equal(a.mean, c.mean)


def test_without_a_seed_the_random_state_decides() -> None:
    model, guide, x = fitted(SUPERVISED[0])
    means = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        means.append(predict(model, guide, x, 5).mean)
    torch.testing.assert_close(means[0], means[1], rtol=0.0, atol=0.0)
    assert not torch.equal(means[1], means[2])
    assert not torch.equal(predict(model, guide, x, 5).mean, predict(model, guide, x, 5).mean)


# ------------------------------------------------------------------------------------------------ what it leaves


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_the_model_is_left_as_it_was(method: Any) -> None:
    """Parameters, buffers, ``requires_grad`` and modes; also between batches, and if the reader stops early."""
    model, guide, x = fitted(SUPERVISED[-1])
    model.train()
    model.net.network[2].eval()

    def state() -> list[Any]:
        tensors = [value.clone() for m in (model, guide) for value in m.state_dict().values()]
        return [tensors, [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]]

    def check(found: list[Any], expected: list[Any]) -> None:
        torch.testing.assert_close(found[0], expected[0], rtol=0.0, atol=0.0)
        assert found[1:] == expected[1:]

    before = state()
    predict(model, guide, x, 5, method=method)
    check(state(), before)
    batches = predict_batches(model, guide, batched(x, 4), 5, method=method)
    next(batches)
    check(state(), before)
    assert torch.is_grad_enabled()
    del batches


def test_evaluation_mode_is_used() -> None:
    """Dropout is off, and BatchNorm uses its running statistics: the rows of a batch do not mix."""
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5).double()
    guide = MAP(model).double()
    x = torch.randn(6, 3).double()
    net.double().eval()
    torch.testing.assert_close(predict(model, guide, x, 2).mean, net(x).softmax(-1))


def test_results_carry_no_gradient() -> None:
    prediction = predict(*fitted(SUPERVISED[1]), 3, return_draws=True)
    assert not any(getattr(prediction, name).requires_grad for name in ("mean", "total", "draws", "noise"))


# ------------------------------------------------------------------------------------------- networks and inputs


class TwoInputs(nn.Module):
    """A network of an image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.a(a) + self.b(b)


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_networks_of_several_inputs(method: Any) -> None:
    model = SupervisedModel(TwoInputs(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5).double()
    guide = MeanField(model, init_scale=0.3).double()
    a, b = torch.randn(300, 3).double(), torch.randn(300, 2).double()
    run = functools.partial(predict, model, guide, num_samples=4, seed=0, method=method)
    whole = run((a, b))
    assert whole.mean.shape == (300, 2)
    draws = guide.sample(1)
    point = predict(model, draws, (a, b), 1, method=method).mean
    logits = a @ draws["net.a.weight"][0].T + draws["net.a.bias"][0] + b @ draws["net.b.weight"][0].T
    torch.testing.assert_close(point, (logits + draws["net.b.bias"][0]).softmax(-1))
    y = torch.zeros(300).long()
    loader = [(({"a": a[i : i + 99], "b": b[i : i + 99]}), y[i : i + 99]) for i in range(0, 300, 99)]
    tuples = [((a[i : i + 50], b[i : i + 50]), y[i : i + 50]) for i in range(0, 300, 50)]
    for data in ({"b": b, "a": a}, loader, tuples):
        assert_alike(run(data), whole, 1e-12)


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 4, batch_first=True), lambda: nn.GRU(3, 4, batch_first=True)])
def test_recurrent_networks(make: Callable[[], nn.Module]) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = make(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    model = SupervisedModel(Last(), likelihoods.Categorical(), priors.lecun(), num_data=5).double()
    guide = MeanField(model, init_scale=0.3).double()
    x = torch.randn(6, 5, 3).double()
    ours = predict(model, guide, x, 300, seed=0, return_draws=True).draws
    outputs = pyro.infer.Predictive(model, guide=guide, num_samples=300, return_sites=["_RETURN"])(x)["_RETURN"]
    assert z_of_means(ours, outputs.softmax(-1)) < Z
    with pytest.raises(ValueError, match=r"^method: torch cannot vmap (LSTM|GRU) layers; use 'loop'"):
        predict(model, guide, x, 3, method="vmap")


def test_per_pixel_classes() -> None:
    model = SupervisedModel(
        nn.Conv2d(1, 3, 3, padding=1), likelihoods.Categorical(class_dim=1), dist.Normal(0.0, 1.0), num_data=5
    )
    prediction = predict(model, MeanField(model), torch.randn(4, 1, 6, 5), 3)
    assert prediction.mean.shape == (4, 6, 5, 3)
    assert prediction.total.shape == prediction.variation_ratio.shape == (4, 6, 5)


def test_tied_and_frozen_weights() -> None:
    """A draw reaches every place of a tied weight, and frozen ones stay."""
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    head = nn.Linear(3, 2).requires_grad_(False)
    model = SupervisedModel(
        nn.Sequential(first, second, head), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5
    )
    x = torch.randn(4, 3)
    draws = MeanField(model, init_scale=0.5).sample(1)
    w = draws["net.0.weight"][0]
    for method in ("loop", "vmap"):
        found = predict(model, draws, x, 1, method=method).mean
        torch.testing.assert_close(found, head(x @ w.T @ w.T).softmax(-1).detach())


# --------------------------------------------------------------------------------------------- models, posteriors


class OwnModel(PyroModule):
    """A model of the user's own that returns the network's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = bayesianize(nn.Linear(3, 2), dist.Normal(0.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_a_users_model_with_a_likelihood(method: Any) -> None:
    x = torch.randn(5, 3)
    model = OwnModel()
    guide = MeanField(model, init_scale=0.5, example=(x,))
    draws = guide.sample(4)
    found = predict(model, draws, x, 4, method=method, likelihood=likelihoods.Categorical(), return_draws=True).draws
    expected = torch.einsum("kij,nj->kni", draws["net.weight"], x) + draws["net.bias"].unsqueeze(1)
    torch.testing.assert_close(found, expected.softmax(-1))


def test_draws_as_a_posterior_are_thinned_evenly() -> None:
    model, guide, x = fitted(SUPERVISED[0])
    draws = guide.sample(10)
    chosen = {name: value[[0, 3, 6, 9]] for name, value in draws.items()}
    assert_alike(predict(model, draws, x, 4), predict(model, chosen, x, 4), 0.0)


def test_another_likelihood_may_be_given() -> None:
    model, guide, x = fitted(SUPERVISED[1])
    prediction = predict(model, guide, x, 3, likelihood=likelihoods.Poisson(), seed=0)
    assert prediction.likelihood.__class__ is likelihoods.Poisson
    torch.testing.assert_close(prediction.aleatoric, prediction.mean)


# ------------------------------------------------------------------------------------------------------- streaming


def test_batches_are_parts_of_the_whole() -> None:
    model, guide, x = fitted(SUPERVISED[0])
    whole = predict(model, guide, x, 6, seed=1)
    parts = [*predict_batches(model, guide, batched(x, 5), 6, seed=1)]
    assert [len(part) for part, _ in parts] == [5, 5, 2]
    torch.testing.assert_close(torch.cat([part.mean for part, _ in parts]), whole.mean)
    assert torch.equal(torch.cat([y for _, y in parts]), torch.arange(12))


def test_draws_are_kept_for_log_prob_only_within_the_budget_for_all_data() -> None:
    """Each of the 4 batches keeps 5 × 3 × 2 numbers of 8 bytes: 240; together 960 of at most a quarter."""
    model, guide, x = fitted(SUPERVISED[1])
    roomy, tight = (predict(model, guide, batched(x, 3), 5, seed=0, max_bytes=m) for m in (3840, 3839))
    assert roomy.draws.shape == roomy.noise.shape == (5, 12, 1)
    assert tight.draws is None
    assert tight.noise is None
    torch.testing.assert_close(roomy.mean, tight.mean)
    asked = predict(model, guide, batched(x, 3), 5, seed=0, max_bytes=3839, return_draws=True)
    torch.testing.assert_close(asked.draws, roomy.draws)


def test_class_probabilities_of_draws_are_kept_only_if_asked_for() -> None:
    model, guide, x = fitted(SUPERVISED[0])
    assert predict(model, guide, x, 3).draws is None
    kept = predict(model, guide, batched(x, 5), 3, return_draws=True)
    assert kept.draws.shape == (3, 12, 3)
    torch.testing.assert_close(kept.draws.mean(0), kept.mean)


def test_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model, guide, x = fitted(SUPERVISED[0])
    predict(model, guide, batched(x, 5), 3, progress=True)
    assert "3/3" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- refusals


def refused(kind: type[Exception], match: str, **changes: Any) -> None:
    """``predict`` refuses the changed arguments."""
    model, guide, x = fitted(SUPERVISED[0])
    arguments: dict[str, Any] = {"model": model, "guide": guide, "data": x, "num_samples": 3} | changes
    with pytest.raises(kind, match=match):
        predict(**arguments)


@pytest.mark.parametrize("num_samples", [0, -1, 2.0, True])
def test_num_samples_must_be_a_positive_int(num_samples: Any) -> None:
    refused(ValueError, r"^num_samples: expected a positive int", num_samples=num_samples)


def test_there_must_be_inputs() -> None:
    for data in (torch.zeros(0, 3), [], (torch.zeros(0, 3), torch.zeros(0, 2)), {}, ()):
        refused(ValueError, r"^data: it holds no inputs", data=data)


def test_data_must_be_inputs() -> None:
    refused(TypeError, r"^data: expected inputs .* got int", data=3)
    refused(TypeError, r"^data: expected a loader .* batch of int", data=[1, 2])
    refused(ValueError, r"^data: the weights of a batch", data=[(torch.zeros(2, 3),) * 3])
    refused(TypeError, r"^data: expected tensors as inputs, got str", data=[("a", torch.zeros(1))])


def test_method_and_budget_are_checked() -> None:
    refused(ValueError, r"^method: .*'loop' or 'vmap', got 'fast'", method="fast")
    refused(ValueError, r"^max_bytes: .*positive", max_bytes=0)


def test_the_posterior_must_be_one() -> None:
    refused(TypeError, r"^guide: .*got function", guide=lambda x: x)
    refused(TypeError, r"^guide: .*got dict", guide={})


def test_the_posterior_of_another_model_is_refused() -> None:
    """A missing site would silently be drawn from its prior."""
    model, guide, _ = fitted(SUPERVISED[0])
    other = SupervisedModel(nn.Linear(3, 3), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    refused(
        ValueError,
        r"^guide: it lacks the model's site 'net\.0\.weight' \(4 missing",
        guide=MeanField(other).double(),
    )
    draws = guide.sample(3)
    del draws["net.2.bias"]
    refused(ValueError, r"^guide: .*'net\.2\.bias' \(1 missing", guide=draws, model=model)


def test_a_model_without_a_likelihood_needs_one() -> None:
    model = OwnModel()
    x = torch.randn(4, 3)
    refused(TypeError, r"^likelihood: OwnModel has no likelihood", model=model, guide=MeanField(model, example=(x,)))


def test_a_model_must_return_one_tensor() -> None:
    class Pair(OwnModel):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), 1

    model = Pair()
    guide = MeanField(model, example=(torch.randn(4, 3),))
    refused(
        TypeError,
        r"^model: .*returned a tuple",
        model=model,
        guide=guide,
        data=torch.randn(4, 3),
        likelihood=likelihoods.Categorical(),
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_seed_is_for_what_a_loader_draws_too(shuffle: bool) -> None:
    """A DataLoader takes a number from torch's random state for its workers, and one for an order."""
    model, guide, x = fitted(SUPERVISED[0])
    loader = DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=3, shuffle=shuffle)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (predict(model, guide, loader, 2, seed=seed) for seed in (1, 1, 2**40))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.mean, second.mean)
    assert not torch.equal(first.mean, other.mean)
    parts = predict_batches(model, guide, loader, 2, seed=1)
    joined = torch.cat([part.mean for part, _ in parts])
    assert torch.equal(joined, first.mean)
    assert torch.equal(torch.get_rng_state(), before)
    predict(model, guide, loader, 2)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_seed_is_an_int() -> None:
    model, guide, x = fitted(SUPERVISED[0])
    for wrong in ("1", 1.5, True):
        with pytest.raises(TypeError, match=r"^seed: expected an int or None, got"):
            predict(model, guide, x, 2, seed=wrong)  # type: ignore[arg-type]
