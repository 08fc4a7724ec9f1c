"""What likelihoods share: shapes and kinds of targets, and what a subclass must write."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyrobnn.curvature.fisher import fisher_roots
from pyrobnn.model.likelihoods import (
    Bernoulli,
    Categorical,
    ClassLikelihood,
    HeteroscedasticNormal,
    Likelihood,
    Normal,
    Poisson,
)

OUTPUTS = torch.tensor([[0.3, -1.2, 2.0, 0.1], [0.0, 0.7, -0.4, -2.0], [1.0, 1.5, 0.2, 0.4]])


@pytest.mark.parametrize("likelihood", [Normal(), Bernoulli(), Poisson()])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 4), (4, 3), (3, 4, 1)])
def test_targets_that_would_broadcast_are_refused(likelihood: Likelihood, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"y: .* expects targets of shape \(3, 4\) for .* reshape") as caught:
        likelihood.check_shape(OUTPUTS, torch.zeros(shape))
    assert f"got {shape}" in str(caught.value)


@pytest.mark.parametrize("likelihood", [Categorical(), HeteroscedasticNormal()])
def test_targets_of_the_shape_of_the_outputs_are_refused(likelihood: Likelihood) -> None:
    with pytest.raises(ValueError, match=r"y: .* expects targets of shape \(3.*\) for .*got \(3, 4\)"):
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


@pytest.mark.parametrize("base", [Likelihood, ClassLikelihood])
def test_what_a_subclass_must_write_is_asked_for(base: type) -> None:
    """When an instance is made, by name."""
    missing = "log_probabilities" if base is ClassLikelihood else "distribution"
    with pytest.raises(TypeError, match=f"abstract method.*{missing}"):
        type("Empty", (base,), {})()


@pytest.mark.parametrize("make", [Bernoulli, HeteroscedasticNormal, Normal, Poisson])
def test_missing_is_a_bool(make: Any) -> None:
    with pytest.raises(TypeError, match="missing: expected True if targets may be NaN"):
        make(missing="NaN")
    assert make(missing=True).config()["missing"] is True
    assert make().target_weighting is None


@pytest.mark.parametrize("wrong", [math.inf, -1.0])
def test_missing_targets_excuse_no_others(wrong: float) -> None:
    y = torch.zeros(3, 4)
    y[0], y[1, 2] = math.nan, wrong
    with pytest.raises(ValueError, match=r"^y: Poisson expects .* \(or NaN, where missing\), got dtype"):
        Poisson(missing=True).check_targets(OUTPUTS, y)


@pytest.mark.parametrize(
    ("likelihood", "argument"),
    [
        (Normal(missing=True), "missing"),
        (Categorical(ignore_index=9), "ignore_index"),
        (Categorical(class_weight=[1.0, 1.0, 2.0, 1.0]), "class_weight"),
    ],
)
def test_curvature_refuses_targets_that_count_unevenly(likelihood: Likelihood, argument: str) -> None:
    assert likelihood.target_weighting == argument
    with pytest.raises(ValueError, match=f"likelihood: {argument} masks or weights targets by their values"):
        fisher_roots(likelihood, OUTPUTS)
