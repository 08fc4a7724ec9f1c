"""A guide or draws of another model are refused by everything that takes them, by name, shape and kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.diagnostics import (
    estimator_report,
    function_space_diagnostics,
    importance_k_hat,
    log_density_diagnostics,
    weight_statistics,
)
from pyrobnn.guides import MAP, Laplace, MeanField
from pyrobnn.model.agreement import check_draws, check_given, latent_shapes
from pyrobnn.robustness import FGSM

NORMAL = dist.Normal(0.0, 1.0)
X, Y = torch.randn(12, 2), torch.randint(0, 3, (12,))


def model_of(width: int, *more: nn.Module) -> pb.SupervisedModel:
    net = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3), *more)
    return pb.SupervisedModel(net, pb.likelihoods.Categorical(), NORMAL, num_data=12)


USERS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "fit": lambda m, g, _: pb.fit(m, g, [(X, Y)], epochs=1, progress=False),
    "predict": lambda m, g, _: pb.predict(m, g, X, 2),
    "predict_batches": lambda m, g, _: next(iter(pb.predict_batches(m, g, [X], 2))),
    "check": lambda m, g, _: pb.check(m, g, [(X, Y)], num_samples=30),
    "describe": lambda m, g, _: pb.describe(m, g),
    "to_arviz": lambda m, g, _: pb.to_arviz(m, g, X, Y, num_samples=2),
    "to_arviz of several": lambda m, g, _: pb.to_arviz(m, [MAP(m), g], X, Y, num_samples=2),
    "save": lambda m, g, path: pb.save(path, m, g),
    "recalibrate_batch_norm": lambda m, g, _: pb.recalibrate_batch_norm(m, g, [(X, Y)]),
    "attacks": lambda m, g, _: FGSM(0.1)(m, g, X, Y, num_samples=2),
    "weight_statistics": lambda m, g, _: weight_statistics(m, g, X, Y),
    "importance_k_hat": lambda m, g, _: importance_k_hat(m, g, X, Y, num_samples=30),
    "function_space": lambda m, g, _: function_space_diagnostics(m, [g, g], X, num_samples=4),
    "log_density": lambda m, g, _: log_density_diagnostics(m, [g, g], X, Y, num_samples=4),
    "estimator_report": lambda m, g, _: estimator_report(m, g, (X, Y), ["shared"], num_samples=2),
}
"""Everything that takes a model and a posterior of it."""


@pytest.mark.parametrize("user", USERS)
def test_the_guide_of_a_wider_network_is_refused(user: str, tmp_path: Path) -> None:
    """Its first weights are [9, 2], which broadcast nowhere in time: predictions came from a network of 9 units."""
    with pytest.raises(ValueError, match=r"(^\w+: its|differs: .*|the) site 'net\.0\.weight'.*\[?9, 2\]?"):
        USERS[user](model_of(5), MeanField(model_of(9)), tmp_path)


@pytest.mark.parametrize("user", USERS)
def test_the_guide_of_a_deeper_network_is_refused(user: str, tmp_path: Path) -> None:
    """All sites of the model are there, and two that it does not have."""
    with pytest.raises(ValueError, match=r"'net\.4\.weight'"):
        USERS[user](model_of(5), MeanField(model_of(5, nn.Linear(3, 3))), tmp_path)


@pytest.mark.parametrize("user", ["predict", "predict_batches", "to_arviz", "function_space", "log_density", "attacks"])
@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda d: d.update({"net.9.weight": d["net.0.weight"]}), ValueError, r"it has the site 'net\.9\.weight'"),
        (lambda d: d.pop("net.3.bias"), ValueError, r"it lacks the model's site 'net\.3\.bias'"),
        (
            lambda d: d.update({"net.3.bias": torch.zeros(4, 1)}),
            ValueError,
            r"its site 'net\.3\.bias' has shape \[1\], but in the model it has \[3\]",
        ),
        (lambda d: d.update({"net.3.bias": torch.zeros(4, 1, 3)}), ValueError, r"'net\.3\.bias' has shape \[1, 3\]"),
        (lambda d: d["net.3.bias"][2].fill_(float("nan")), ValueError, r"'net\.3\.bias' hold NaN"),
        (lambda d: d.update({"net.3.bias": d["net.3.bias"].double()}), TypeError, r"'net\.3\.bias' are torch.float64"),
        (lambda d: d.update({"net.3.bias": d["net.3.bias"].long()}), TypeError, r"'net\.3\.bias' are a tensor of"),
        (lambda d: d.update({"net.3.bias": [0.0] * 4}), TypeError, r"'net\.3\.bias' are a list"),
        (lambda d: d.update({"net.3.bias": torch.tensor(0.0)}), ValueError, r"'net\.3\.bias' have shape \[\]"),
    ],
)
def test_draws_that_do_not_fit_are_refused(
    user: str, damage: Callable[[Any], Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    model = model_of(5)
    draws = {name: value.clone() for name, value in MeanField(model).sample(4).items()}
    damage(draws)
    with pytest.raises(kind, match=rf"^(guide|posterior): .*{message}"):
        USERS[user](model, draws, tmp_path)


def test_curvature_is_not_computed_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"^model: its site 'net\.0\.weight' has shape \[9, 2\]"):
        Laplace(model_of(9), structure="full").fit(model_of(5), [(X, Y)])


def test_given_values_are_checked() -> None:
    model = model_of(5)
    laplace = Laplace(model, structure="full", sites=["net.3.weight", "net.3.bias"])
    good = {"net.0.weight": torch.zeros(5, 2), "net.0.bias": torch.zeros(5)}
    laplace.fit(model, [(X, Y)], given=good)
    for bad, message in (
        ({"net.0.bias": torch.zeros(1)}, r"^given: its site 'net\.0\.bias' has shape \[1\]"),
        ({"net.0.bais": torch.zeros(5)}, r"^given: it has the site 'net\.0\.bais'"),
        ({"net.0.bias": torch.full((5,), float("inf"))}, r"^given: .*'net\.0\.bias' hold NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            laplace.fit(model, [(X, Y)], given=good | bad)


def test_shapes_are_found_without_drawing_and_under_hierarchical_priors() -> None:
    """Two sites for each weight: the scale, on which the prior of the other depends, and the raw value."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), pb.priors.horseshoe(), num_data=12)
    assert latent_shapes(model) == {name: site.shape for name, site in MeanField(model).layout.items()}
    state = torch.get_rng_state()
    latent_shapes(model)
    assert torch.equal(torch.get_rng_state(), state)
    check_draws(model, MeanField(model).sample(3))
    check_given(model, {})


def test_a_model_of_ones_own_is_not_asked() -> None:
    """Its sites are known only in a run."""

    def model(x: torch.Tensor) -> torch.Tensor:
        return pyro.sample("w", NORMAL) * x

    assert latent_shapes(model) is None
    check_draws(model, {"v": torch.zeros(3)})


FAMILIES: dict[str, Callable[[Any], Any]] = {
    "mean field": MeanField,
    "point": MAP,
    "low rank": lambda model: pb.guides.LowRankNormal(model, 2),
    "members": lambda model: pb.guides.DeltaMixture(model, 2),
    "dropout": lambda model: pb.guides.MCDropout(model, p=0.1),
    "composite": lambda model: pb.guides.Composite(model, [("net.0.*", MAP), ("*", MeanField)]),
}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("user", ["fit", "predict", "check"])
def test_a_guide_of_another_precision_is_refused(family: str, user: str, tmp_path: Path) -> None:
    """One of the two was converted; torch would complain about a matrix product deep inside."""
    for of_model, of_guide in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        model = model_of(3).to(of_model)
        guide = FAMILIES[family](model).to(of_guide)
        with pytest.raises(
            TypeError, match=rf"^guide: the guide is {of_guide}, but the network of the model is {of_model}"
        ):
            USERS[user](model, guide, tmp_path)
    assert pb.predict(model, guide.double(), X.double(), 2).num_samples in (1, 2)
