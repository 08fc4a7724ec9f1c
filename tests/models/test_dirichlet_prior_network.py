"""The prior network: its outputs and objective, and stripes it knows beside noise it does not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pyrobnn as pb
from models.dirichlet_prior_network import dirichlet_prior_network, lenet, objective
from pyrobnn.guides import MAP, MeanField
from pyrobnn.metrics import auroc
from pyrobnn.model.likelihoods.dirichlet import DirichletPrediction


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images ``[count, 1, 16, 16]`` of vertical, horizontal or diagonal stripes."""
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.stack([column, row, (row + column) / 2**0.5])
    y = torch.arange(count) % 3
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    x = (0.8 * waves[y] + phase).sin() + 0.3 * torch.randn(count, 16, 16, generator=generator)
    return x.unsqueeze(1), y


def checks(count: int, seed: int) -> Tensor:
    """Checkerboards of random phase."""
    vertical, horizontal = stripes(3 * count, seed)[0][0::3], stripes(3 * count, seed + 1)[0][1::3]
    return vertical * horizontal


@pytest.mark.parametrize("evidential", [False, True])
def test_outputs_become_concentrations_of_any_size_of_image(evidential: bool) -> None:
    model = dirichlet_prior_network(5, classes=4, channels=2, width=4, evidential=evidential)
    for size in (16, 28, 33):
        outputs = model.predictive(torch.randn(3, 2, size, size))
        assert outputs.shape == (3, 4)
        alpha = model.likelihood.concentrations(outputs)
        assert bool((alpha >= 1).all()) if evidential else torch.equal(alpha, outputs.clamp(-10, 10).exp())
    assert sum(p.numel() for p in lenet(4, 2, 4).parameters()) == MAP(model).layout.size


def test_the_objectives_are_those_of_the_papers() -> None:
    prior, evidential = objective([torch.ones(1, 1, 16, 16)]), objective(evidential=True, annealing_steps=11)
    assert [term.name for term in prior.terms[2:]] == ["dirichlet", "outliers"]
    assert prior.weights() == {"log_likelihood": 0.0, "divergence": 1.0, "dirichlet": 1.0, "outliers": 1.0}
    assert [term.name for term in evidential.terms[2:]] == ["dirichlet", "misleading_evidence"]
    assert evidential.weights()["misleading_evidence"] == 0.0
    evidential.num_steps = 100
    assert evidential.weights()["misleading_evidence"] == 1.0


@pytest.mark.parametrize("family", [MAP, MeanField])
def test_unknown_images_have_less_evidence(family: type[MAP] | type[MeanField], tmp_path: Path) -> None:
    """Checkerboards; noise and checkerboards with shuffled columns were trained on. A checkpoint predicts the same."""
    torch.manual_seed(0)
    (x, y), (test, labels) = stripes(96, 0), stripes(60, 1)
    model = dirichlet_prior_network(96, classes=3, width=4)
    guide = family(model)
    loader = [(x[rows], y[rows]) for rows in torch.arange(96).split(32)]
    outliers = [torch.randn(32, 1, 16, 16), checks(32, 7)[..., torch.randperm(16)]]
    pb.fit(model, guide, loader, epochs=40, lr=5e-3, elbo=objective(outliers), seed=0, progress=False)
    inside, outside = (pb.predict(model, guide, images, 5, seed=0) for images in (test, checks(60, 11)))
    assert isinstance(inside, DirichletPrediction) and isinstance(outside, DirichletPrediction)
    assert float((inside.predicted == labels).double().mean()) > 0.95
    assert auroc(-inside.alpha0, -outside.alpha0) > 0.9
    pb.save(tmp_path, model, guide)
    loaded = pb.load(tmp_path, lenet(3, width=4))
    again = pb.predict(*loaded, test, 5, seed=0)
    assert isinstance(again, DirichletPrediction) and torch.equal(again.alpha0, inside.alpha0)
