"""All members in one vectorized pass: the same numbers as member by member, and the loop where vmap cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.guides import DeltaMixture
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO, NonFiniteLossError
from pyrobnn.steps.vectorized import pays_off
from tests.conformance.comparisons import assert_same, gradients


def network(outputs: int = 3) -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def model_of(net: nn.Module, likelihood: Any = None, prior: Any = None) -> SupervisedModel:
    """A model of 24 data in double precision."""
    prior = prior or dist.Normal(0.3, 0.7)
    return SupervisedModel(net, likelihood or likelihoods.Categorical(), prior, num_data=24).double()


def images() -> nn.Module:
    """A convolutional network with a norm layer whose parameters are shared by all members."""
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(4, 3))


MODELS: dict[str, Callable[[], SupervisedModel]] = {
    "one flat prior": lambda: model_of(network()),
    "priors by layer": lambda: model_of(network(), prior=priors.lecun()),
    "latent noise": lambda: model_of(network(1), likelihoods.Normal(dist.LogNormal(0.0, 0.5))),
    "horseshoe": lambda: model_of(network(1), likelihoods.Normal(0.5), priors.horseshoe()),
    "learned scale": lambda: model_of(network(1), likelihoods.Normal(0.5), priors.learned_scale()),
    "shared norm": lambda: model_of(images()),
}


def batch_for(model: SupervisedModel) -> tuple[Tensor, Tensor]:
    """Twelve rows."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 3, generator=generator).double()
    if isinstance(model.likelihood, likelihoods.ClassLikelihood):
        return x, torch.randint(3, (12,), generator=generator)
    return x, torch.randn(12, 1, generator=generator).double()


ANCHORABLE = ("one flat prior", "priors by layer", "shared norm")
COMBINATIONS = [(name, strategy) for name in MODELS for strategy in ("regularized", "free")]
COMBINATIONS += [(name, "anchored") for name in ANCHORABLE]


@pytest.mark.parametrize(("name", "strategy"), COMBINATIONS)
def test_loss_and_gradients_are_those_of_the_loop(name: str, strategy: Any) -> None:
    model = MODELS[name]()
    together = DeltaMixture(model, 3, "prior", strategy=strategy, vmap=True).double()
    loop = DeltaMixture(model, 3, "prior", strategy=strategy, vmap=False).double()
    loop.load_state_dict(together.state_dict())
    batch = batch_for(model)
    for _ in range(2):  # the step that meets the priors of the model in double precision, and one after it
        elbos = [ELBO(temperature=0.5) for _ in range(2)]
        found, expected = (gradients(model, g, batch, e) for g, e in zip((together, loop), elbos, strict=True))
        assert_same(found, expected, rtol=1e-9, atol=1e-9)
        for part in ("log_likelihood", "divergence", "loss"):
            torch.testing.assert_close(getattr(elbos[0].parts, part), getattr(elbos[1].parts, part))
        assert elbos[0].num_steps == 1


def test_gradients_add_up() -> None:
    model = model_of(network())
    guide = DeltaMixture(model, 3, vmap=True).double()
    batch = batch_for(model)
    for _ in range(3):
        ELBO().backward(model, guide, batch)
    total = guide.flat_loc.grad.clone()
    guide.flat_loc.grad = None
    ELBO().backward(model, guide, batch)
    torch.testing.assert_close(total, 3.0 * guide.flat_loc.grad)


class Counting(nn.Module):
    """Counts how often Python runs through it."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        """The identity."""
        self.runs += 1
        return x


class Branching(Counting):
    """Looks at numbers, which vmap cannot show."""

    def forward(self, x: Tensor) -> Tensor:
        """The identity, or so."""
        return super().forward(x if float(x.detach().sum()) > 0.0 else x + 0.0)


def runs(layer: Counting, **options: Any) -> int:
    """Runs of the network in the second of two steps of three members."""
    model = model_of(nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 3)))
    guide = DeltaMixture(model, 3, **options).double()
    inside, elbo = model.net.network[1], ELBO()
    for _ in range(2):
        inside.runs = 0
        elbo.backward(model, guide, batch_for(model))
    return inside.runs


def test_who_runs_together() -> None:
    assert runs(Counting(), vmap=True) == 1
    assert runs(Counting()) == 1
    assert runs(Counting(), vmap=False) == 3
    assert runs(Counting(), members_per_step=2) == 2
    with pytest.warns(UserWarning, match=r"vmap: torch cannot run this model for all members at once") as said:
        assert runs(Branching()) == 3
    assert [str(w.message).startswith("vmap: torch cannot") for w in said].count(True) == 1
    with pytest.raises(ValueError, match=r"vmap: this model cannot be run vectorized"):
        runs(Branching(), vmap=True)


class Halved(torch.autograd.Function):
    """x / 2, whose forward runs under vmap and whose backward looks at numbers, which vmap cannot show."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Half of it."""
        return 0.5 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        """All members at once."""
        return UnbatchedBackward.apply(x), in_dims[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Half of it."""
        return 0.5 * gradient


class UnbatchedBackward(torch.autograd.Function):
    """x / 2, whose backward takes one member's gradient ``[B, 4]`` only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Half of it."""
        return 0.5 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Half of it."""
        if gradient.dim() != 2:
            raise RuntimeError("no rule for the backward pass of a batch")
        return 0.5 * gradient


class Half(nn.Module):
    """A layer with it."""

    def forward(self, x: Tensor) -> Tensor:
        """Half of it."""
        return Halved.apply(x)


def test_a_backward_pass_that_vmap_cannot_run_falls_back_to_the_loop() -> None:
    """Gradients that were there stay, and those of the loop are added once."""
    model = model_of(nn.Sequential(nn.Linear(3, 4), Half(), nn.Linear(4, 1)), likelihoods.Normal(0.5))
    batch, guides = batch_for(model), []
    for vmap in ("auto", False):
        guide = DeltaMixture(model, 3, vmap=vmap).double()  # type: ignore[arg-type]
        guides.append(guide)
        if len(guides) == 2:
            guide.load_state_dict(guides[0].state_dict())
        guide.flat_loc.grad = torch.ones_like(guide.flat_loc)
    elbo = ELBO()
    with pytest.warns(UserWarning, match=r"vmap: torch cannot run .* says so \(no rule for the backward") as said:
        elbo.backward(model, guides[0], batch)
    assert len(said) == 1
    elbo.backward(model, guides[0], batch)  # and says nothing
    assert elbo.num_steps == 2
    loop = ELBO()
    loop.backward(model, guides[1], batch)
    loop.backward(model, guides[1], batch)
    torch.testing.assert_close(guides[0].flat_loc.grad, guides[1].flat_loc.grad)
    with pytest.raises(ValueError, match=r"vmap: this model cannot be run vectorized .* use vmap=False"):
        ELBO().backward(model, DeltaMixture(model, 3, vmap=True).double(), batch)


def test_the_rule_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    small, large = torch.empty(8, 100_000), torch.empty(8, 100_001)
    assert pays_off(network(), small)
    assert not pays_off(network(), large)
    assert not pays_off(network(), small[:2])
    assert not pays_off(images(), small)
    assert pays_off(images(), small[:, :10_000])
    assert not pays_off(nn.LSTM(3, 4), small)
    assert pays_off(images(), torch.empty(8, 100_001, device="meta"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert pays_off(network(), torch.empty(8, 500_000))
    assert not pays_off(network(), torch.empty(16, 300_001))
    assert not pays_off(images(), small)


@pytest.mark.parametrize("options", [{"members_per_step": 2}, {}])
def test_refusals(options: dict[str, Any]) -> None:
    net = network() if options else nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"vmap: a vectorized step visits all members and cannot have"):
        DeltaMixture(model_of(net), 3, vmap=True, **options)
    with pytest.raises(ValueError, match=r"vmap: expected True, False or 'auto'"):
        DeltaMixture(model_of(net), 3, vmap="maybe")  # type: ignore[arg-type]


def test_non_finite_losses_are_blamed_as_in_the_loop() -> None:
    model = model_of(network())
    guide = DeltaMixture(model, 3, vmap=True).double()
    batch = batch_for(model)
    ELBO().backward(model, guide, batch)
    before = copy.deepcopy(guide.flat_loc.grad)
    with torch.no_grad():
        guide.flat_loc[1, 0] = float("nan")
    with pytest.raises(NonFiniteLossError):
        ELBO().backward(model, guide, batch)
    torch.testing.assert_close(guide.flat_loc.grad, before)
