"""Activation checkpoints inside a network: gradients are those of the same network without checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from pyrobnn import guides, likelihoods, objectives
from pyrobnn.guides import Guide
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling.hmc.potential import Potential

_NOISE = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 1, 4, 4, generator=_NOISE), torch.randint(3, (12,), generator=_NOISE)


class Net(nn.Module):
    """A convolution, whose backward pass reads its weight, batch norm and dropout inside the checkpoint."""

    def __init__(self, reentrant: bool | None, *, sequential: bool = False, tracked: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        norm = nn.BatchNorm2d(3, track_running_stats=tracked)
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), norm, nn.Tanh(), nn.Dropout(0.3))
        self.scale = nn.Parameter(torch.tensor([1.3]))
        self.last = nn.Linear(48, 3)
        self.reentrant, self.sequential = reentrant, sequential

    def part(self, h: Tensor) -> Tensor:
        """What is checkpointed: layers, and a parameter that no layer owns."""
        return self.inner(h).square() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.reentrant is None:
            h = self.part(h)
        elif self.sequential:
            h = checkpoint_sequential(self.inner, 2, h, use_reentrant=self.reentrant).square() * self.scale
        else:
            h = checkpoint(self.part, h, use_reentrant=self.reentrant)
        return self.last(h.flatten(1))


def gradients(
    net: nn.Module, make: Callable[..., Guide], differentiate: Callable[[Any, Guide], object], training: bool = True
) -> list[Tensor]:
    """Gradients of a guide's parameters after a step, from the same random numbers for each network."""
    torch.manual_seed(3)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.0, 0.4)
    rules = [("inner.1.*", None), ("*", dist.Normal(0.0, 1.0))]
    model = SupervisedModel(net, likelihoods.Categorical(), rules, num_data=24).train(training)
    guide = make(model)
    torch.manual_seed(4)
    with frozen_buffers(model):
        differentiate(model, guide)
    found = [p.grad for module in (guide, model) for p in module.parameters() if p.grad is not None]
    assert sum(float(gradient.norm()) for gradient in found) > 0.1
    return found


def _step(**options: Any) -> Callable[[Any, Guide], object]:
    return lambda model, guide: objectives.ELBO(**options).backward(model, guide, (X, Y))


def _graph(model: Any, guide: Guide) -> None:
    """Several draws in one graph, each with weights of its own."""
    objectives.ELBO(3).differentiable_loss(model, guide, X, Y).backward()


def _regularized(model: Any, guide: Guide) -> None:
    objectives.RegularizedELBO(objectives.perturbed(0.1), 0.6, 5.0).backward(model, guide, (X, Y))


def _adversarial(model: Any, guide: Guide) -> None:
    objectives.AdversarialELBO(num_steps=2).backward(model, guide, (X, Y))


WAYS: list[tuple[str, Callable[..., Guide], Callable[[Any, Guide], object]]] = [
    ("a point", guides.MAP, _step()),
    ("in place", guides.MeanField, _step()),
    ("two draws", guides.MeanField, _step(num_particles=2)),
    ("one graph", guides.MeanField, _graph),
    ("coupled", guides.LowRankNormal, _step()),
    ("vectorized", lambda m: guides.DeltaMixture(m, 3, init="prior", vmap=True), _step()),
    ("members", lambda m: guides.DeltaMixture(m, 3, init="prior", vmap=False), _step()),
    ("shared members", lambda m: guides.LowRankEnsemble(m, 2), _step()),
    ("dropout", guides.MCDropout, _step()),
    ("input masks", lambda m: guides.MCDropout(m, per_example=True), _step()),
    ("local reparameterization", guides.MeanField, _step(estimator="local_reparameterization")),
    ("flipout", guides.MeanField, _step(estimator="flipout")),
    ("groups", guides.MeanField, _step(estimator="per_group")),
    ("path derivative", guides.MeanField, _step(estimator="path_derivative")),
    ("regularizer", guides.MeanField, _regularized),
    ("adversary", guides.MeanField, _adversarial),
]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("make", "differentiate"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS])
def test_gradients_are_those_without_checkpoints(
    make: Callable[..., Guide], differentiate: Callable[[Any, Guide], object], reentrant: bool
) -> None:
    tracked = make is not WAYS[5][1]  # members that run at once cannot have running statistics
    expected = gradients(Net(None, tracked=tracked), make, differentiate)
    found = gradients(Net(reentrant, tracked=tracked), make, differentiate)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_parts_of_a_sequence(reentrant: bool) -> None:
    expected = gradients(Net(None), guides.MeanField, _step(), training=False)
    found = gradients(Net(reentrant, sequential=True), guides.MeanField, _step(), training=False)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_backward_pass_has_the_modes_of_the_run() -> None:
    def differentiate(model: Any, guide: Guide) -> None:
        model.eval()
        loss = objectives.ELBO().differentiable_loss(model, guide, X, Y)
        model.train()
        loss.backward()
        assert model.net.network.inner.training

    expected = gradients(Net(None), guides.MAP, differentiate)
    found = gradients(Net(False), guides.MAP, differentiate)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_potentials(reentrant: bool) -> None:
    found = []
    for choice in (None, reentrant):
        torch.manual_seed(5)
        net = nn.Sequential(Net(choice)).eval()
        rules = [("0.inner.1.*", None), ("*", dist.Normal(0.0, 1.0))]
        model = SupervisedModel(net, likelihoods.Categorical(), rules, num_data=12).eval()
        potential = Potential(model, (X, Y))
        found.append(potential.value_and_grad(potential.start().expand(2, -1).contiguous())[1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_networks_of_others_are_left_alone() -> None:
    net = Net(True)
    net.inner[3].p = 0.0  # type: ignore[assignment]
    loss = net(X).square().sum()
    names, seen = set(), [loss.grad_fn]
    while seen:
        node = seen.pop()
        if node is not None:
            names.add(node.name())
            seen += [following for following, _ in node.next_functions]
    assert "CheckpointFunctionBackward" in names
    loss.backward()
    with_checkpoint = net.inner[0].weight.grad.clone()
    net.zero_grad()
    net.reentrant = None
    net(X).square().sum().backward()
    torch.testing.assert_close(net.inner[0].weight.grad, with_checkpoint)
