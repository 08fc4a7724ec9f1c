"""The leapfrog: reversible, volume-preserving, second order; the same when compiled; eager where it cannot be."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.core.compilation import has_compiler
from pyrobnn.core.shared_library import CompilerError
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling.hmc import leapfrog
from pyrobnn.sampling.hmc.leapfrog import Leapfrogs, State
from pyrobnn.sampling.hmc.potential import Potential
from tests.core.test_shared_library import needs_gcc

needs_compiler = pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no C++ compiler on this machine")


def potential() -> Potential:
    """A small network with a latent noise scale: no quadratic, and constrained."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
    model = SupervisedModel(net, likelihoods.Normal(dist.LogNormal(0.0, 0.5)), dist.Normal(0.0, 1.0), num_data=8)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(-1)
    return Potential(model.double(), (x, torch.sin(3 * x)))


def start(target: Potential, num_chains: int = 2) -> State:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, num_chains, target.num_latents, generator=generator, dtype=torch.float64)
    q = target.start() + 0.3 * noise[0]
    value, gradient = target.value_and_grad(q)
    return q, noise[1], gradient, value


def energy(state: State, inverse_mass: Tensor) -> Tensor:
    return state[3] + 0.5 * state[1].square() @ inverse_mass


def steps(size: float, num_chains: int = 2) -> Tensor:
    return torch.full((num_chains, 1), size, dtype=torch.float64)


# --------------------------------------------------------------------------------------------- what makes HMC exact


def test_a_trajectory_with_its_momentum_turned_leads_back() -> None:
    target = potential()
    before = start(target)
    mass = torch.linspace(0.5, 2.0, target.num_latents, dtype=torch.float64)
    run = Leapfrogs(target, before[0], num_leapfrog=20, total=0, compile=False)
    q, p, gradient, value = run(before, 20, steps(0.05), mass)
    assert float((q - before[0]).abs().max()) > 0.1
    back = run((q, -p, gradient, value), 20, steps(0.05), mass)
    torch.testing.assert_close(back[0], before[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(back[1], -before[1], rtol=0, atol=1e-10)


def test_volume_is_preserved() -> None:
    target = potential()
    q, p, _, _ = start(target, num_chains=1)
    size = target.num_latents
    mass = torch.linspace(0.5, 2.0, size, dtype=torch.float64)
    run = Leapfrogs(target, q, num_leapfrog=3, total=0, compile=False)
    run.value_and_grad = torch.func.vmap(lambda row: torch.func.grad_and_value(target)(row)[::-1])

    def move(joint: Tensor) -> Tensor:
        here = joint[:size].unsqueeze(0)
        value, gradient = run.value_and_grad(here)
        moved = run((here, joint[size:].unsqueeze(0), gradient, value), 3, steps(0.2, 1), mass)
        return torch.cat([moved[0][0], moved[1][0]])

    jacobian = torch.func.jacrev(move)(torch.cat([q[0], p[0]]))
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-10)
    assert float((jacobian - torch.eye(2 * size)).abs().max()) > 0.1


def test_the_energy_error_is_of_second_order() -> None:
    target = potential()
    before = start(target, num_chains=3)
    mass = torch.ones(target.num_latents, dtype=torch.float64)
    errors = []
    for halvings in range(3):
        size, count = 0.04 / 2**halvings, 16 * 2**halvings
        run = Leapfrogs(target, before[0], num_leapfrog=count, total=0, compile=False)
        after = run(before, count, steps(size, 3), mass)
        errors.append((energy(after, mass) - energy(before, mass)).abs())
    for coarse, fine in ((errors[0], errors[1]), (errors[1], errors[2])):
        assert ((coarse / fine - 4.0).abs() < 0.4).all(), coarse / fine


def test_each_chain_has_its_own_step_size() -> None:
    target = potential()
    before = start(target)
    mass = torch.ones(target.num_latents, dtype=torch.float64)
    sizes = torch.tensor([[0.01], [0.05]], dtype=torch.float64)
    both = Leapfrogs(target, before[0], num_leapfrog=4, total=0, compile=False)(before, 4, sizes, mass)
    for chain in range(2):
        one: State = tuple(part[chain : chain + 1] for part in before)  # type: ignore[assignment]
        alone = Leapfrogs(target, one[0], num_leapfrog=4, total=0, compile=False)(
            one, 4, sizes[chain : chain + 1], mass
        )
        for whole, part in zip(both, alone, strict=True):
            torch.testing.assert_close(whole[chain : chain + 1], part)


# --------------------------------------------------------------------------------------------------- compilation


@given(st.integers(1, 500), st.integers(1, 8))
def test_blocks_waste_less_than_one_block(num_leapfrog: int, largest: int) -> None:
    size = leapfrog._block_size(num_leapfrog, largest)
    assert 1 <= size <= largest
    assert -num_leapfrog % size < size
    assert num_leapfrog % largest or size == largest


@pytest.fixture
def without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GCC for loops in C++."""

    def refused(*_: object) -> None:
        raise CompilerError("none")

    monkeypatch.setattr(leapfrog, "CompiledPotential", refused)


def assert_equals_eager(compiled: Leapfrogs, target: Potential) -> None:
    before, chains = start(target), 2
    mass = torch.linspace(0.5, 2.0, target.num_latents, dtype=torch.float64)
    eager = Leapfrogs(target, before[0], num_leapfrog=2, total=0, compile=False)
    assert compiled.is_compiled and not eager.is_compiled
    for count, size in ((2, 0.05), (4, -0.05), (5, 0.05)):  # 5: the last block holds one leapfrog that does not move
        with torch.no_grad():
            both = [run(before, count, steps(size, chains), mass) for run in (compiled, eager)]
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@needs_gcc
def test_loops_equal_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("loops in C++ do without"))
    target = potential()
    assert_equals_eager(Leapfrogs(target, start(target)[0], num_leapfrog=2, total=0, compile=True), target)


@needs_compiler
@pytest.mark.usefixtures("without_loops")
def test_fused_blocks_equal_eager() -> None:
    target = potential()
    compiled = Leapfrogs(target, start(target)[0], num_leapfrog=2, total=0, compile=True)
    assert compiled.block == 2
    assert_equals_eager(compiled, target)


@needs_gcc
def test_potentials_without_loops_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("sums", -z.cumsum(0).square().sum())

    seen: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: seen.append(function) or function)
    target = Potential(model)
    assert Leapfrogs(target, torch.zeros(2, 3), num_leapfrog=4, total=0, compile=True).is_compiled
    assert len(seen) == 1


def test_without_a_compiler_long_runs_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for owner, name in ((torch, "compile"), (leapfrog, "CompiledPotential")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("there is no compiler to call"))
    assert not has_compiler(torch.device("cpu"))
    target = potential()
    before = start(target)
    run = Leapfrogs(target, before[0], num_leapfrog=8, total=10**9, compile="auto")
    assert not run.is_compiled
    after = run(before, 8, steps(0.02), torch.ones(target.num_latents, dtype=torch.float64))
    assert not torch.equal(after[0], before[0])


def broken_compile(*_: object, **__: object) -> None:
    raise OSError("g++: not found")


@pytest.mark.usefixtures("without_loops")
def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", broken_compile)
    monkeypatch.setattr(leapfrog, "has_compiler", lambda device: True)
    target = potential()
    q = start(target)[0]
    with pytest.raises(RuntimeError, match=r"compile: torch.compile failed \(g\+\+: not found\).*compile=False"):
        Leapfrogs(target, q, num_leapfrog=1, total=0, compile=True)
    with pytest.warns(UserWarning, match=r"leapfrogs run uncompiled.*g\+\+: not found"):
        run = Leapfrogs(target, q, num_leapfrog=1, total=10**9, compile="auto")
    assert not run.is_compiled and run.block == 1


@pytest.mark.usefixtures("without_loops")
def test_a_missing_compiler_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", broken_compile)
    monkeypatch.setattr(leapfrog, "has_compiler", lambda device: False)
    target = potential()
    with pytest.raises(RuntimeError, match=r"failed \(there is no C\+\+ compiler.*; use compile=False"):
        Leapfrogs(target, start(target)[0], num_leapfrog=1, total=0, compile=True)


@pytest.mark.usefixtures("without_loops")
def test_warnings_of_the_compiler_do_not_keep_it_from_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def warning_compile(function: Callable[..., object], **_: object) -> Callable[..., object]:
        def run(*inputs: Tensor) -> object:
            if not ran:
                warnings.warn("Guards may run slower", RuntimeWarning, stacklevel=1)
            ran.append(len(inputs))
            return function(*inputs)

        return run

    ran: list[int] = []
    monkeypatch.setattr(torch, "compile", warning_compile)
    target = potential()
    compiled = Leapfrogs(target, start(target)[0], num_leapfrog=1, total=0, compile=True)
    assert_equals_eager(compiled, target)
    assert len(ran) > 1  # the first ran while warnings are errors


@pytest.mark.usefixtures("without_loops")
def test_short_runs_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("it does not pay"))
    target = potential()
    for total in (1000, 10_000):  # the second would be worth loops
        assert not Leapfrogs(target, start(target)[0], num_leapfrog=8, total=total, compile="auto").is_compiled


@needs_gcc
def test_short_runs_have_loops_before_they_are_fused() -> None:
    target = potential()
    for total, pays in ((1000, False), (10_000, True)):
        run = Leapfrogs(target, start(target)[0], num_leapfrog=8, total=total, compile="auto")
        assert run.is_compiled is pays


def test_a_model_that_cannot_be_recorded_cannot_be_compiled() -> None:
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("bend", -loc if loc > 0 else 2.0 * loc)

    target = Potential(model)
    with pytest.raises(RuntimeError, match=r"compile: .* cannot be recorded.*compile=False"):
        Leapfrogs(target, torch.zeros(1, 1), num_leapfrog=2, total=0, compile=True)
    assert not Leapfrogs(target, torch.zeros(1, 1), num_leapfrog=2, total=10**9, compile="auto").is_compiled
