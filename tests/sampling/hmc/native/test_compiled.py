"""Compiled potentials: values, gradients and trajectories of models, whatever the number of chains and threads."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling.hmc.leapfrog import Leapfrogs
from pyrobnn.sampling.hmc.native import compiled as module
from pyrobnn.sampling.hmc.native.compiled import CompiledPotential
from pyrobnn.sampling.hmc.native.operators import DECOMPOSITIONS
from pyrobnn.sampling.hmc.potential import Potential
from tests.conformance.guide_models import SMOOTH, Case
from tests.core.test_shared_library import needs_gcc
from tests.sampling.hmc.test_potential import whole

pytestmark = needs_gcc


def network(dtype: torch.dtype = torch.float32) -> Potential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 1))
    model = SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=30).to(dtype)
    return Potential(model, (torch.randn(30, 3, dtype=dtype), torch.randn(30, 1, dtype=dtype)))


def compiled(potential: Potential) -> CompiledPotential:
    graph = potential.graph(potential.start(), DECOMPOSITIONS)
    assert graph is not None
    return CompiledPotential(graph)


def points(potential: Potential, chains: int) -> Tensor:
    start = potential.start()
    return start + 0.3 * torch.randn(chains, len(start), dtype=start.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_values_and_gradients_of_models(case: Case, dtype: torch.dtype) -> None:
    model, args = whole(case)
    potential = Potential(model.to(dtype), tuple(a.to(dtype) if a.is_floating_point() else a for a in args))
    flat = points(potential, 3)
    values, gradients = compiled(potential).value_and_grad(flat)
    for row, value, gradient in zip(flat, values, gradients, strict=True):
        leaf = row.clone().requires_grad_()
        expected = potential(leaf)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_trajectories_are_those_of_torch_and_lead_back(dtype: torch.dtype) -> None:
    potential = network(dtype)
    q = points(potential, 3)
    value, gradient = potential.value_and_grad(q)
    start = q, torch.randn_like(q), gradient, value
    kept = [part.clone() for part in start]
    sizes = torch.tensor([[0.02], [0.01], [0.03]], dtype=dtype)
    mass = torch.linspace(0.5, 2.0, q.shape[1], dtype=dtype)
    program = compiled(potential)
    there = program.leapfrogs(start, 20, sizes, mass)
    known = Leapfrogs(potential, q, num_leapfrog=20, total=0, compile=False)(start, 20, sizes, mass)
    single = dtype == torch.float32
    for found, expected in zip(there, known, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4 if single else 1e-9, atol=1e-4 if single else 1e-9)
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))  # it is not written to
    back = program.leapfrogs(there, 20, -sizes, mass)
    torch.testing.assert_close(back[0], q, rtol=0, atol=1e-4 if single else 1e-12)
    torch.testing.assert_close(back[1], start[1], rtol=0, atol=1e-3 if single else 1e-11)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_chains(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_THREADS", 0.0)
    potential = network()
    q = points(potential, 5)
    value, gradient = potential.value_and_grad(q)
    state, mass = (q, torch.randn_like(q), gradient, value), torch.ones(q.shape[1])
    sizes = torch.full((5, 1), 0.01)
    program = compiled(potential)
    alone = [*program.leapfrogs(state, 7, sizes, mass), *program.value_and_grad(q)]
    torch.set_num_threads(threads)
    together = [*program.leapfrogs(state, 7, sizes, mass), *program.value_and_grad(q)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert len(program._works) == min(threads, 5)


def test_short_calls_stay_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_THREADS", 1e6)
    potential = network()
    q = points(potential, 5)
    torch.set_num_threads(2)
    program = compiled(potential)
    for _ in range(3):
        program.value_and_grad(q)
    assert len(program._works) == 1


def test_arguments_may_have_any_strides() -> None:
    potential = network()
    q = points(potential, 4).t().contiguous().t()
    value, gradient = potential.value_and_grad(q)
    program = compiled(potential)
    values, gradients = program.value_and_grad(q)
    torch.testing.assert_close(values, value)
    torch.testing.assert_close(gradients, gradient)
    state = q, torch.randn_like(q), gradient, value
    step, mass = torch.full((), 0.01).expand(4, 1), torch.ones(2 * q.shape[1])[::2]
    moved = program.leapfrogs(state, 3, step, mass)
    plain = program.leapfrogs(tuple(part.contiguous() for part in state), 3, step.contiguous(), mass.contiguous())  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(moved, plain, strict=True))


def test_chains_that_diverge_do_not_touch_the_others() -> None:
    potential = network()
    q = points(potential, 2)
    value, gradient = potential.value_and_grad(q)
    state, mass = (q, torch.randn_like(q), gradient, value), torch.ones(q.shape[1])
    program = compiled(potential)
    wild = program.leapfrogs(state, 50, torch.tensor([[1e3], [0.01]]), mass)
    tame = program.leapfrogs(state, 50, torch.full((2, 1), 0.01), mass)
    assert not bool(wild[3][0].isfinite())
    assert all(torch.equal(a[1], b[1]) for a, b in zip(wild, tame, strict=True))
    again = program.leapfrogs(state, 50, torch.full((2, 1), 0.01), mass)
    assert all(torch.equal(a, b) for a, b in zip(again, tame, strict=True))
