"""The potential: against Pyro's log joint, closed forms and Jacobians by hand; refusals."""

from __future__ import annotations

import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.sampling.hmc.potential import Potential
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_models import SMOOTH, Case


def network(num_data: int = 12, *layers: nn.Module, outputs: int = 1) -> SupervisedModel:
    net = nn.Sequential(nn.Linear(3, 4), *(layers or (nn.Tanh(),)), nn.Linear(4, outputs))
    return SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=num_data)


def whole(case: Case) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The case's model and as many data as its num_data."""
    x, y = case.batch()
    return case.model(), (torch.cat([x, x + 0.1]), torch.cat([y, y]))


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 3), torch.randn(12, 1)


# ------------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_it_is_pyros_log_joint_and_the_jacobian(case: Case) -> None:
    model, args = whole(case)
    potential = Potential(model, args)
    flat = potential.start() + 0.1 * torch.randn(potential.num_latents)
    values = potential.constrain(flat)
    log_joint = poutine.trace(poutine.condition(model, values)).get_trace(*args).log_prob_sum()
    jacobian = 0.0
    for name, unconstrained in potential.layout.split(flat).items():
        site = potential.layout[name]
        if not site.is_real:  # all constrained sites of these models are positive, by the exponential
            torch.testing.assert_close(values[name], unconstrained.exp())
            jacobian += float(unconstrained.sum())
    assert potential(flat).item() == pytest.approx(-log_joint.item() - jacobian, rel=1e-5)


@pytest.mark.parametrize("case", SMOOTH, ids=str)
@pytest.mark.parametrize("num_chains", [None, 1, 3])
def test_recorded_values_and_gradients_are_autograds(case: Case, num_chains: int | None) -> None:
    model, args = whole(case)
    potential = Potential(model.double(), tuple(a.double() if a.is_floating_point() else a for a in args))
    start = potential.start()
    flat = start + 0.1 * torch.randn(*(() if num_chains is None else (num_chains,)), len(start), dtype=start.dtype)
    assert potential.is_recorded(flat)
    values, gradients = potential.value_and_grad(flat)
    for row, value, gradient in zip(
        flat.view(-1, len(start)), values.view(-1), gradients.view(-1, len(start)), strict=True
    ):
        leaf = row.clone().requires_grad_()
        expected = potential(leaf)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0])
    assert values.shape == flat.shape[:-1]


_RECORDED = """
import sys
import torch
from pyrobnn import likelihoods
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling.hmc.potential import Potential

net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
potential = Potential(SupervisedModel(net, likelihoods.Normal(0.5), num_data=4), (torch.ones(4, 2), torch.ones(4, 1)))
flat = potential.start().repeat(2, 1)
potential.value_and_grad(flat)
assert potential.is_recorded(flat)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_recording_a_model_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", _RECORDED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_it_is_the_exact_quadratic_of_conjugate_regression() -> None:
    case = ConjugateRegression()
    potential = Potential(case.model(), (case.x, case.y))
    flat = torch.randn(4, dtype=torch.float64)
    off = flat - case.mean
    evidence = 0.5 * off @ case.precision @ off - case.log_evidence
    evidence += 0.5 * (4 * math.log(2 * math.pi) - float(torch.logdet(case.precision)))
    assert float(potential(flat)) == pytest.approx(float(evidence), rel=1e-6)  # the noise is kept in float32


def test_torch_func_can_transform_it() -> None:
    case = ConjugateRegression()
    potential = Potential(case.model(), (case.x, case.y))
    hessian = torch.func.jacrev(torch.func.jacrev(potential))(torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(hessian, case.precision)


def test_a_positive_site_brings_its_jacobian() -> None:
    def model() -> None:
        pyro.sample("scale", dist.LogNormal(0.3, 0.7))

    potential = Potential(model)
    u = torch.tensor([0.9])  # log of a log-normal is Normal
    assert float(potential(u)) == pytest.approx(-float(dist.Normal(0.3, 0.7).log_prob(u)), rel=1e-6)


def test_a_simplex_has_fewer_unconstrained_elements() -> None:
    def model() -> None:
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))

    potential = Potential(model)
    assert potential.num_latents == 2
    grid = torch.linspace(-12, 12, 121)
    points = torch.cartesian_prod(grid, grid)
    values = potential.recorded(points)(points)[0]
    assert float((-values).exp().sum() * 0.2**2) == pytest.approx(1.0, abs=1e-3)  # a density of the plane


def test_masks_scales_and_factors_count() -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=0.5), poutine.mask(mask=torch.tensor([True, False])), pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        pyro.factor("penalty", -(loc**2))

    potential = Potential(model, (torch.tensor([1.0, 7.0]),))
    at = torch.tensor(0.4)
    expected = dist.Normal(0.0, 1.0).log_prob(at) + 0.5 * dist.Normal(at, 1.0).log_prob(torch.tensor(1.0)) - at**2
    assert float(potential(at.reshape(1))) == pytest.approx(-float(expected), rel=1e-6)


def test_a_model_that_branches_on_values_is_differentiated_by_autograd() -> None:
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("bend", -loc if loc > 0 else 2.0 * loc)

    potential = Potential(model)
    flat = torch.tensor([[1.0], [-2.0]])
    assert not potential.is_recorded(flat)
    values, gradients = potential.value_and_grad(flat)
    assert gradients.tolist() == [[2.0], [-4.0]]
    torch.testing.assert_close(values, torch.stack([potential(row) for row in flat]))


# ------------------------------------------------------------------------------------------- it leaves things alone


def test_random_state_buffers_and_modes_stay() -> None:
    model = network(12, nn.BatchNorm1d(4), nn.Tanh()).eval()
    args = data()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    potential = Potential(model, args)
    potential.value_and_grad(potential.start().expand(2, -1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


# -------------------------------------------------------------------------------------------------------- refusals


def test_a_part_of_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"site 'y': .* plate 'data' of size 24, of which 12 were given.*SGLD"):
        Potential(network(24), data())


def test_batch_norm_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm layer 'net.net.1' is in training mode.*model.eval"):
        Potential(network(12, nn.BatchNorm1d(4), nn.Tanh()), data())


def test_dropout_in_training_mode_is_refused() -> None:
    model = network(12, nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"its log density is random.*model.eval"):
        Potential(model, data())
    Potential(model.eval(), data())


def test_a_model_that_changes_its_buffers_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.register_buffer("calls", torch.tensor(0.0))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x)

    model = SupervisedModel(Counting(), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=12)
    with pytest.raises(ValueError, match=r"changes the buffer 'calls'"):
        Potential(model, data())


def test_discrete_sites_are_refused() -> None:
    def model() -> None:
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"site 'k': .*discrete"):
        Potential(model)


def test_a_support_that_moves_is_refused() -> None:
    def model() -> None:
        top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
        pyro.sample("below", dist.Uniform(0.0, top))

    with pytest.raises(ValueError, match=r"site 'below': its support depends on other sites"):
        Potential(model)


@pytest.mark.parametrize("num_chains", [1, 3])
def test_a_start_that_is_not_finite_names_the_site_and_the_chain(num_chains: int) -> None:
    potential = Potential(network(), data())
    flat = potential.start().repeat(num_chains, 1)
    potential.check_start(flat)
    site = potential.layout["net.2.weight"]
    flat[-1, site.offset] = torch.nan
    with pytest.raises(NonFiniteLossError, match=rf"chain {num_chains - 1} starts: .*'net\.2\.weight'"):
        potential.check_start(flat)


def test_data_that_are_not_finite_name_the_observed_site() -> None:
    x, y = data()
    y[3] = torch.inf
    model = network()
    potential = Potential(model, data())
    potential.args = (x, y)
    with pytest.raises(NonFiniteLossError, match=r"the log density of the site 'y' is -inf"):
        potential.check_start(potential.start().unsqueeze(0))
