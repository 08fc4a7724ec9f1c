"""Each likelihood against hand-written densities and moments, and its refusals of targets that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrobnn.likelihoods import Bernoulli, Categorical, HeteroscedasticNormal, Likelihood, Normal, Poisson
from pyrobnn.substitution import Substitution

OUTPUTS = torch.tensor([[0.3, -1.2, 2.0, 0.1], [0.0, 0.7, -0.4, -2.0], [1.0, 1.5, 0.2, 0.4]])


def gaussian(y: Tensor, mean: Tensor, scale: Tensor | float) -> Tensor:
    """Log density per datum, summed over the other dimensions."""
    scale = torch.as_tensor(scale)
    log_density = -0.5 * ((y - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    return log_density.reshape(len(y), -1).sum(-1)


# name -> (likelihood, targets beside OUTPUTS, log density per datum)
CASES: dict[str, tuple[Callable[[], Likelihood], Tensor, Callable[[Tensor], Tensor]]] = {
    "categorical": (
        Categorical,
        torch.tensor([2, 0, 3]),
        lambda y: -F.cross_entropy(OUTPUTS, y, reduction="none"),
    ),
    "bernoulli": (
        Bernoulli,
        torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]]),
        lambda y: -F.binary_cross_entropy_with_logits(OUTPUTS, y, reduction="none").sum(-1),
    ),
    "normal": (lambda: Normal(0.7), OUTPUTS + 0.5, lambda y: gaussian(y, OUTPUTS, 0.7)),
    "normal, learned": (
        lambda: Normal(0.7, learn_scale=True),
        OUTPUTS - 1,
        lambda y: gaussian(y, OUTPUTS, 0.7),
    ),
    "heteroscedastic": (
        lambda: HeteroscedasticNormal(0.01),
        torch.tensor([[0.0, 1.0], [0.5, -0.5], [2.0, 1.0]]),
        lambda y: gaussian(y, OUTPUTS[:, :2], (1 + OUTPUTS[:, 2:].exp()).log() + 0.01),
    ),
    "poisson": (
        Poisson,
        torch.tensor([[0.0, 1, 7, 2], [1, 3, 0, 0], [2, 5, 1, 1]]),
        lambda y: (y * OUTPUTS - OUTPUTS.exp() - torch.lgamma(y + 1)).sum(-1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_log_density_per_datum(name: str) -> None:
    make, y, expected = CASES[name]
    distribution = make()(OUTPUTS)
    assert distribution.batch_shape == (3,), "one log density per datum"
    torch.testing.assert_close(distribution.log_prob(y), expected(y))


@pytest.mark.parametrize("name", CASES)
def test_targets_of_the_right_kind_pass_and_have_the_shape_of_a_draw(name: str) -> None:
    make, y, _ = CASES[name]
    likelihood = make()
    likelihood.check_targets(OUTPUTS, y)
    assert likelihood.target_shape(OUTPUTS) == y.shape
    draw = likelihood(OUTPUTS).sample()
    likelihood.check_targets(OUTPUTS, draw)


@pytest.mark.parametrize("name", [name for name, (make, _, _) in CASES.items() if not make().is_discrete])
def test_moments_are_those_of_the_distribution(name: str) -> None:
    likelihood = CASES[name][0]()
    mean, variance = likelihood.moments(OUTPUTS)
    distribution = likelihood(OUTPUTS)
    torch.testing.assert_close(mean, distribution.mean)
    torch.testing.assert_close(variance, distribution.variance)
    with pytest.raises(NotImplementedError, match="not a likelihood of classes"):
        likelihood.probabilities(OUTPUTS)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_classes_have_no_moments(likelihood: Likelihood) -> None:
    with pytest.raises(NotImplementedError, match="is a likelihood of classes"):
        likelihood.moments(OUTPUTS)


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_rebuilds_it(name: str) -> None:
    likelihood = CASES[name][0]()
    rebuilt = type(likelihood)(**likelihood.config())
    rebuilt.load_state_dict(likelihood.state_dict())
    y = CASES[name][1]
    assert torch.equal(rebuilt(OUTPUTS).log_prob(y), likelihood(OUTPUTS).log_prob(y))


@pytest.mark.parametrize("name", CASES)
def test_double_precision_throughout(name: str) -> None:
    make, y, expected = CASES[name]
    y = y.double() if y.is_floating_point() else y
    log_density = make().double()(OUTPUTS.double()).log_prob(y)
    assert log_density.dtype == torch.float64
    torch.testing.assert_close(log_density, expected(y).double(), rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------- classes


def test_softmax_probabilities() -> None:
    expected = OUTPUTS.exp() / OUTPUTS.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(Categorical().probabilities(OUTPUTS), expected)


def test_pixels_have_their_classes_in_dimension_one() -> None:
    outputs = torch.randn(2, 4, 3, 5)
    likelihood = Categorical(class_dim=1)
    y = torch.randint(4, (2, 3, 5))
    likelihood.check_targets(outputs, y)
    torch.testing.assert_close(likelihood.probabilities(outputs), outputs.softmax(1).permute(0, 2, 3, 1))
    expected = -F.cross_entropy(outputs, y, reduction="none").sum((1, 2))
    distribution = likelihood(outputs)
    assert distribution.batch_shape == (2,)
    torch.testing.assert_close(distribution.log_prob(y), expected)


@pytest.mark.parametrize("void", [11, 255, -1])
def test_ignored_pixels_count_nowhere(void: int) -> None:
    outputs = torch.randn(2, 4, 3, 5, requires_grad=True)
    likelihood = Categorical(class_dim=1, ignore_index=void)
    y = torch.randint(4, (2, 3, 5))
    y[0, 1:], y[1, :, 2] = void, void
    likelihood.check_targets(outputs, y)
    log_density = likelihood(outputs).log_prob(y)
    expected = -F.cross_entropy(outputs, y, reduction="none", ignore_index=void).sum((1, 2))
    torch.testing.assert_close(log_density, expected)
    log_density.sum().backward()
    ignored = (y == void).unsqueeze(1).expand_as(outputs)
    assert outputs.grad is not None
    assert torch.equal(outputs.grad[ignored], torch.zeros(int(ignored.sum())))
    assert bool((outputs.grad[~ignored] != 0).all())
    assert torch.equal(likelihood.probabilities(outputs), Categorical(class_dim=1).probabilities(outputs))
    assert likelihood.config() == {"class_dim": 1, "ignore_index": void}


def test_images_that_are_all_void_count_zero() -> None:
    likelihood = Categorical(class_dim=1, ignore_index=11)
    outputs, y = torch.randn(2, 4, 3, 3), torch.full((2, 3, 3), 11)
    likelihood.check_targets(outputs, y)
    assert torch.equal(likelihood(outputs).log_prob(y), torch.zeros(2))


def test_only_the_ignored_label_may_be_outside_the_classes() -> None:
    y = torch.tensor([11, 12, 0])
    with pytest.raises(ValueError, match=r"from 0 to 3 or 11, which is ignored, .*from 0 to 12"):
        Categorical(ignore_index=11).check_targets(OUTPUTS, y)
    with pytest.raises(ValueError, match=r"integer labels from 0 to 3 \("):
        Categorical().check_targets(OUTPUTS, torch.tensor([11, 3, 0]))


@pytest.mark.parametrize("wrong", [True, 1.0, "void"])
def test_the_ignored_label_is_an_int(wrong: object) -> None:
    with pytest.raises(TypeError, match="ignore_index: expected the label to ignore"):
        Categorical(ignore_index=wrong)  # type: ignore[arg-type]


def test_both_probabilities_of_a_bernoulli_keep_their_digits() -> None:
    logits = torch.tensor([[0.0], [60.0], [-60.0]])
    probabilities = Bernoulli().probabilities(logits)
    assert probabilities.shape == (3, 1, 2)
    torch.testing.assert_close(probabilities[0, 0], torch.tensor([0.5, 0.5]))
    assert probabilities[1, 0, 0].item() == pytest.approx(math.exp(-60.0), rel=1e-5, abs=0.0), "not 1 - 1 = 0"
    assert probabilities[2, 0, 1].item() == pytest.approx(math.exp(-60.0), rel=1e-5, abs=0.0)


@given(classes=st.integers(2, 6), batch=st.integers(1, 5), wrong=st.sampled_from([-1, "C", 1000]))
def test_labels_outside_the_classes_are_refused(classes: int, batch: int, wrong: int | str) -> None:
    outputs, y = torch.zeros(batch, classes), torch.zeros(batch, dtype=torch.long)
    Categorical().check_targets(outputs, y)
    y[-1] = classes if wrong == "C" else int(wrong)
    with pytest.raises(ValueError, match=rf"y: Categorical expects integer labels from 0 to {classes - 1} .*{y[-1]}"):
        Categorical().check_targets(outputs, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64])
def test_labels_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"y: Categorical expects integer labels from 0 to 3 .*{dtype}"):
        Categorical().check_targets(OUTPUTS, torch.zeros(3).to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype_pass(dtype: torch.dtype) -> None:
    Categorical().check_targets(OUTPUTS, torch.tensor([0, 3, 1], dtype=dtype))


def test_classes_need_a_dimension() -> None:
    for call in (Categorical(), lambda outputs: Categorical().check_shape(outputs, torch.zeros(3))):
        with pytest.raises(ValueError, match=r"net: Categorical expects outputs \[B, C\].*\(3,\)"):
            call(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_binary_targets_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"y: Bernoulli expects floating-point targets that are 0 or 1.*{dtype}"):
        Bernoulli().check_targets(OUTPUTS, torch.ones_like(OUTPUTS).to(dtype))


@pytest.mark.parametrize("wrong", [0.5, -1.0, 2.0, math.nan])
def test_binary_targets_of_another_value_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"y: Bernoulli expects floating-point targets that are 0 or 1"):
        Bernoulli().check_targets(OUTPUTS, torch.full_like(OUTPUTS, wrong))


# --------------------------------------------------------------------------------------------------- normal


def test_the_learned_noise_has_the_gradient_of_the_log_density() -> None:
    """d/d log σ of Σ log N(y; f, σ²) is Σ ((y - f)²/σ² - 1)."""
    likelihood = Normal(0.5, learn_scale=True)
    y = OUTPUTS + 0.3
    likelihood(OUTPUTS).log_prob(y).sum().backward()
    ((name, parameter),) = likelihood.named_parameters()
    assert name == "noise.log_scale"
    torch.testing.assert_close(parameter.grad, torch.tensor(12 * (0.09 / 0.25 - 1)))


def test_the_fixed_noise_is_not_trained() -> None:
    likelihood = Normal(0.5)
    assert list(likelihood.parameters()) == []
    assert likelihood.noise_scale().item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "prior",
    [
        dist.LogNormal(0.0, 1.0),
        dist.HalfNormal(1.0),
        dist.HalfCauchy(1.0),
        dist.Gamma(2.0, 1.0),
        dist.Uniform(0.0, 2.0),
    ],
)
def test_the_latent_noise_is_a_site_with_its_prior(prior: dist.Distribution) -> None:
    likelihood = Normal(prior)
    trace = poutine.trace(likelihood).get_trace(OUTPUTS)
    node = trace.nodes["scale"]
    assert not node["is_observed"]
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), prior.log_prob(node["value"]))
    with Substitution({"scale": torch.tensor(0.4)}):
        log_density = likelihood(OUTPUTS).log_prob(OUTPUTS + 1)
        _, variance = likelihood.moments(OUTPUTS)
    torch.testing.assert_close(log_density, gaussian(OUTPUTS + 1, OUTPUTS, 0.4))
    torch.testing.assert_close(variance, torch.full_like(OUTPUTS, 0.16))
    assert likelihood.sample_latents().keys() == {"scale"}


@pytest.mark.parametrize("prior", [dist.Normal(0.0, 1.0), dist.Uniform(-1.0, 1.0), dist.Laplace(0.0, 1.0)])
def test_a_noise_prior_off_the_positive_reals_is_refused(prior: dist.Distribution) -> None:
    with pytest.raises(ValueError, match=r"scale: its prior must live on the positive reals .*got"):
        Normal(prior)


def test_a_noise_prior_of_several_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'scale'.*shape \(4,\) does not broadcast"):
        Normal(dist.LogNormal(torch.zeros(4), 1.0))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_noise_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"scale: expected a positive standard deviation, got"):
        Normal(scale)


def test_noise_is_inferred_or_learned_but_not_both() -> None:
    with pytest.raises(ValueError, match=r"scale: .*not both"):
        Normal(dist.LogNormal(0.0, 1.0), learn_scale=True)


@pytest.mark.parametrize("floor", [-0.1, math.nan])
def test_a_negative_floor_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor: expected a standard deviation of at least 0"):
        HeteroscedasticNormal(floor)


def test_the_floor_bounds_the_scale() -> None:
    _, variance = HeteroscedasticNormal(0.1).moments(torch.tensor([[0.0, -100.0]]))
    assert variance.item() == pytest.approx(0.01)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_means_and_scales_need_an_even_number_of_outputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"net: HeteroscedasticNormal expects outputs \[B, 2 D\].*two outputs per target"
    ):
        HeteroscedasticNormal()(torch.zeros(shape))


# -------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("likelihood", [Normal(), Bernoulli(), Poisson()])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 4), (4, 3), (3, 4, 1)])
def test_targets_that_would_broadcast_are_refused(likelihood: Likelihood, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"y: .* expects targets of shape \(3, 4\) beside .* reshape") as caught:
        likelihood.check_shape(OUTPUTS, torch.zeros(shape))
    assert f"got {shape}" in str(caught.value)


@pytest.mark.parametrize("likelihood", [Categorical(), HeteroscedasticNormal()])
def test_targets_of_the_shape_of_the_outputs_are_refused(likelihood: Likelihood) -> None:
    with pytest.raises(ValueError, match=r"y: .* expects targets of shape \(3.*\) beside .*got \(3, 4\)"):
        likelihood.check_shape(OUTPUTS, torch.zeros(3, 4))


@pytest.mark.parametrize("y", [[0, 1, 2], 1.0, None])
def test_targets_that_are_no_tensor_are_refused(y: object) -> None:
    with pytest.raises(TypeError, match="y: expected a tensor of targets, got"):
        Categorical().check_shape(OUTPUTS, y)  # type: ignore[arg-type]


@pytest.mark.parametrize("likelihood", [Normal(), Poisson()])
def test_integer_targets_of_a_float_likelihood_are_refused(likelihood: Likelihood) -> None:
    with pytest.raises(TypeError, match=r"y: .* expects .*floating-point.*torch\.int64"):
        likelihood.check_targets(OUTPUTS, torch.zeros(3, 4, dtype=torch.long))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("likelihood", [Normal(), Poisson()])
def test_targets_that_are_not_finite_are_refused(likelihood: Likelihood, wrong: float) -> None:
    y = torch.zeros(3, 4)
    y[1, 2] = wrong
    with pytest.raises(ValueError, match=r"y: .* expects"):
        likelihood.check_targets(OUTPUTS, y)


@pytest.mark.parametrize("wrong", [-1.0, 0.5])
def test_counts_are_non_negative_whole_numbers(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"y: Poisson expects floating-point counts"):
        Poisson().check_targets(OUTPUTS, torch.full((3, 4), wrong))
