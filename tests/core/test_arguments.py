"""Checks of arguments: what passes, what does not, and what the message says."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn import guides, likelihoods, priors, sampling, structure
from pyrobnn import objectives as elbo
from pyrobnn.core import arguments

NO_NUMBERS = ["1", None, True, [1], 1j]


@pytest.mark.parametrize(
    ("check", "right", "wrong", "expected"),
    [
        (arguments.check_positive_int, [1, 7], [0, -1, 1.0, math.nan, *NO_NUMBERS], "a positive int"),
        (partial(arguments.check_int, low=0), [0, 7], [-1, 0.0, math.inf, *NO_NUMBERS], "an int of at least 0"),
        (partial(arguments.check_int, low=2, high=5), [2, 5], [1, 6, 2.0, *NO_NUMBERS], "an int from 2 to 5"),
        (
            arguments.check_positive,
            [1, 1e-300, 2.5],
            [0, 0.0, -1, math.inf, math.nan, *NO_NUMBERS],
            "a positive number",
        ),
        (
            arguments.check_non_negative,
            [0, 0.0, 2.5],
            [-1, -1e-300, math.inf, math.nan, *NO_NUMBERS],
            "a number of at least 0",
        ),
        (
            arguments.check_probability,
            [0.5, 1e-300],
            [0, 1, 0.0, 1.0, -0.5, math.nan, *NO_NUMBERS],
            "a probability between 0 and 1",
        ),
        (
            partial(arguments.check_number, low=0.0, high=2.0),
            [0, 2, 0.0, 2.0, 1],
            [-0.1, 2.1, math.inf, math.nan, *NO_NUMBERS],
            "a number from 0 to 2",
        ),
        (
            partial(arguments.check_number, low=0.0, high=1.0, above=True),
            [1, 0.5],
            [0, 0.0, 1.1, math.nan, *NO_NUMBERS],
            "a number above 0 to 1",
        ),
        (
            partial(arguments.check_number, low=0.0, high=1.0, below=True),
            [0, 0.5],
            [1, 1.0, -0.1, math.nan, *NO_NUMBERS],
            "a number from 0 to below 1",
        ),
    ],
)
def test_checks(check: Any, right: list[Any], wrong: list[Any], expected: str) -> None:
    for value in right:
        check("rank", value)
    for value in wrong:
        with pytest.raises(ValueError) as error:
            check("rank", value)
        assert str(error.value) == f"rank: expected {expected}, got {value!r}."


# ------------------------------------------------------------------------------------- all that take a positive number


def small_model() -> pb.SupervisedModel:
    return pb.SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=10)


def fitted(**rates: Any) -> Any:
    model = small_model()
    data = [(torch.zeros(10, 2), torch.zeros(10, 1))]
    return pb.fit(model, guides.MeanField(model), data, epochs=1, progress=False, **rates)


def structure_guide(**options: Any) -> guides.ConcreteStructure:
    model = pb.bayesianize(nn.Sequential(nn.Linear(2, 2), structure.Gate()), dist.Normal(0.0, 1.0))
    return guides.ConcreteStructure(model, sites=["1.gates.structure"], **options)


POSITIVE: dict[str, Callable[[Any], Any]] = {
    "init_scale of MeanField": lambda v: guides.MeanField(small_model(), init_scale=v),
    "init_scale of LowRankNormal": lambda v: guides.LowRankNormal(small_model(), 1, init_scale=v),
    "spread of DeltaMixture": lambda v: guides.DeltaMixture(small_model(), 2, init={}, spread=v),
    "scale of SWAG": lambda v: guides.SWAG(small_model(), scale=v),
    "step_size of AdversarialELBO": lambda v: elbo.AdversarialELBO(step_size=v),
    "epsilon of perturbed": elbo.perturbed,
    "threshold of RegularizedELBO": lambda v: elbo.RegularizedELBO(elbo.perturbed(0.1), threshold=v),
    "temperature of ELBO": lambda v: elbo.ELBO(temperature=v),
    "step_size of SGLD": sampling.SGLD,
    "temperature of SGLD": lambda v: sampling.SGLD(1e-3, temperature=v),
    "trajectory_length of HMC": lambda v: sampling.HMC(trajectory_length=v),
    "bias_scale of he": lambda v: priors.he(bias_scale=v),
    "sigma1 of scale_mixture": lambda v: priors.scale_mixture(0.5, v),
    "sigma2 of scale_mixture": lambda v: priors.scale_mixture(0.5, 1.0, v),
    "scale of centered": priors.centered,
    "scale of horseshoe": priors.horseshoe,
    "initial of learned_scale": priors.learned_scale,
    "temperature of Gate": lambda v: pb.bayesianize(structure.Gate(temperature=v), dist.Normal(0.0, 1.0)),
}
NOT_NEGATIVE: dict[str, Callable[[Any], Any]] = {
    "lr of fit": lambda v: fitted(lr=v),
    "scale_lr of fit": lambda v: fitted(scale_lr=v),
    "init_scale of ConcreteStructure": lambda v: structure_guide(init_scale=v),
    "weight of RegularizedELBO": lambda v: elbo.RegularizedELBO(elbo.perturbed(0.1), weight=v),
    "gradient_noise of SGHMC": lambda v: sampling.SGHMC(1e-3, gradient_noise=v),
}


def refused(make: Callable[[Any], Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name.split()[0]}: expected a "):
        make(value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, "1", True], ids=str)
@pytest.mark.parametrize("name", POSITIVE)
def test_positive_numbers(name: str, value: Any) -> None:
    refused(POSITIVE[name], name, value)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "1", True], ids=str)
@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_numbers_of_at_least_0(name: str, value: Any) -> None:
    refused(NOT_NEGATIVE[name], name, value)
