"""The Hessian of Pyro models of one's own, through the Laplace guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.guides import MAP, Laplace

NOISE, N = 0.5, 24


class Linear(PyroModule):
    """y = x w + effect[group] + noise, with Normal priors."""

    def __init__(self, noise: dist.Distribution | None = None) -> None:
        super().__init__()
        self.noise = noise
        self.net = pb.bayesianize(nn.Linear(2, 1, bias=False), dist.Normal(0.0, 2.0))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        group = x[:, 2].long()
        scale = NOISE if self.noise is None else pyro.sample("noise", self.noise)
        with pyro.plate("groups", 3):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.5))
        mean = self.net(x[:, :2]).squeeze(-1) + effect[group]
        size = len(x) if y is None else N
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)
        return mean


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, generator=generator)
    x[:, 2] = torch.arange(N) % 3
    y = x[:, 0] - x[:, 1] + x[:, 2] + NOISE * torch.randn(N, generator=generator)
    return x, y


def exact() -> tuple[Tensor, Tensor, float]:
    """Mean and covariance of (weights, effects), and the log evidence."""
    x, y = (value.double() for value in data())
    design = torch.cat([x[:, :2], torch.nn.functional.one_hot(x[:, 2].long(), 3).double()], 1)
    prior = torch.tensor([4.0, 4.0, 2.25, 2.25, 2.25]).double()
    covariance = torch.linalg.inv(design.T @ design / NOISE**2 + torch.diag(1 / prior))
    marginal = design @ torch.diag(prior) @ design.T + NOISE**2 * torch.eye(N).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros(N).double(), marginal).log_prob(y)
    return covariance @ design.T @ y / NOISE**2, covariance, float(evidence)


def fitted(model: nn.Module, batch_size: int = N, **options: Any) -> Laplace:
    """At the exact mode, in batches."""
    mean = exact()[0].float()
    x, y = data()
    values = {"net.weight": mean[:2].view(1, 2), "effect": mean[2:]}
    guide = Laplace(model, init=values, **({"structure": "full", "example": (x, y)} | options))
    return guide.fit(model, DataLoader(TensorDataset(x, y), batch_size))


def flat(guide: Laplace, num_samples: int) -> Tensor:
    draws = guide.sample(num_samples)
    return torch.cat([draws["net.weight"].flatten(1), draws["effect"]], 1)


@pytest.mark.parametrize("batch_size", [N, 7])
def test_it_is_the_exact_posterior_of_a_linear_model(batch_size: int) -> None:
    """Covariance and evidence in closed form, whatever the batches; plates of latent sites are covered, too."""
    guide = fitted(Linear(), batch_size)
    _, covariance, evidence = exact()
    assert set(guide.covered) == {"net.weight", "effect"}
    place = {"net.weight": torch.arange(2), "effect": torch.arange(2, 5)}
    index = torch.cat([place[name] for name in guide.covered])
    half = guide.flat_blocks[0].half_covariance(torch.eye(5))
    torch.testing.assert_close((half @ half.T).double(), covariance[index][:, index], rtol=1e-4, atol=1e-6)
    assert guide.log_evidence() == pytest.approx(evidence, rel=1e-5)


def test_draws_and_predictions_have_its_moments() -> None:
    """4,000 draws: means within four standard errors; predictions are of draws."""
    guide = fitted(model := Linear())
    mean, covariance, _ = exact()
    torch.manual_seed(0)
    draws = flat(guide, 4000).double()
    assert bool(((draws.mean(0) - mean).abs() < 4 * (covariance.diagonal() / 4000).sqrt()).all())
    x, _ = data()
    prediction = pb.predict(model, guide, x, 2000, likelihood=pb.likelihoods.Normal(NOISE), seed=0)
    design = torch.cat([x[:, :2], torch.nn.functional.one_hot(x[:, 2].long(), 3)], 1).double()
    spread = (design @ covariance * design).sum(1)
    torch.testing.assert_close(prediction.epistemic.double(), spread, rtol=4 * (2 / 2000) ** 0.5, atol=0)


def test_the_diagonal_is_that_of_the_hessian() -> None:
    guide = fitted(Linear(), structure="diagonal")
    precision = torch.linalg.inv(exact()[1]).diagonal()
    found = {name: guide.marginal(name).variance.flatten().double() for name in guide.covered}
    torch.testing.assert_close(found["net.weight"], 1 / precision[:2], rtol=1e-4, atol=0)
    torch.testing.assert_close(found["effect"], 1 / precision[2:], rtol=1e-4, atol=0)


def test_sites_that_are_not_real_are_points_whose_values_count() -> None:
    """With the noise a site at its mode, the Gaussian is that of the others given it."""
    model = Linear(dist.LogNormal(-1.0, 0.1))
    x, y = data()
    guide = MAP(model, example=(x, y))
    pb.fit(model, guide, [(x, y)], epochs=1500, lr=2e-2, seed=0, progress=False)
    found = Laplace(model, init=guide, structure="full", example=(x, y)).fit(model, [(x, y)])
    assert "noise" not in found.covered
    noise = float(found.sample(2)["noise"][0])
    assert noise == float(found.sample(2)["noise"][1])
    design = torch.cat([x[:, :2], torch.nn.functional.one_hot(x[:, 2].long(), 3)], 1).double()
    prior = torch.tensor([4.0, 4.0, 2.25, 2.25, 2.25]).double()
    expected = torch.linalg.inv(design.T @ design / noise**2 + torch.diag(1 / prior)).diagonal()
    variance = {name: found.marginal(name).variance.flatten().double() for name in found.covered}
    torch.testing.assert_close(variance["net.weight"], expected[:2], rtol=1e-3, atol=0)
    torch.testing.assert_close(variance["effect"], expected[2:], rtol=1e-3, atol=0)


def test_a_saved_one_is_restored(tmp_path: Path) -> None:
    x, y = data()
    guide = fitted(Linear())
    other = Laplace(Linear(), structure="full", example=(x, y))
    other.load_state_dict(guide.state_dict())
    torch.manual_seed(0)
    first = flat(guide, 3)
    torch.manual_seed(0)
    assert torch.equal(flat(other, 3), first)


def test_what_it_cannot_do_is_refused() -> None:
    x, y = data()
    model = Linear()
    for structure in ("last_layer", "kronecker"):
        with pytest.raises(TypeError, match=rf"^model: structure='{structure}' needs a SupervisedModel"):
            Laplace(model, structure=structure, example=(x, y)).fit(model, [(x, y)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^prior_precision: it is tuned for a SupervisedModel only"):
        Laplace(model, structure="full", example=(x, y)).fit(model, [(x, y)], prior_precision="evidence")
    with pytest.raises(ValueError, match=r"^loader: it yielded 20 rows, but the model has 24 data"):
        Laplace(model, structure="full", example=(x, y)).fit(model, [(x[:20], y[:20])])

    class Double(PyroModule):
        """Two modes, at ±1, and a minimum of the density between them."""

        def forward(self, x: Tensor, y: Tensor) -> None:
            w = pyro.sample("w", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(w**2, 0.1), obs=y)

    double, ones = Double(), torch.ones(5)
    for start, is_mode in ((1.0, True), (0.0, False)):
        guide = Laplace(double, init={"w": torch.tensor(start)}, structure="full", example=(ones, ones))
        if is_mode:
            guide.fit(double, [(ones, ones)])
            assert float(guide.marginal("w").variance) == pytest.approx(1 / (5 * 4 / 0.01 + 0.01), rel=1e-3)
        else:
            with pytest.raises(ValueError, match=r"^model: its log density is no maximum at the mode"):
                guide.fit(double, [(ones, ones)])

    class Wide(PyroModule):
        def forward(self, x: Tensor, y: Tensor) -> None:
            w = pyro.sample("w", dist.Normal(torch.zeros(2001), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y.sum())

    wide = Wide()
    guide = Laplace(wide, structure="diagonal", example=(ones, ones))
    with pytest.raises(ValueError, match=r"^structure: .* each of its 2,001 real numbers, at most 2,000"):
        guide.fit(wide, [(ones, ones)])
