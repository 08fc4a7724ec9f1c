"""The concrete guide of structure: the conformance suite, its KL, its limit on an enumerable toy, schedules."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn import likelihoods, schedules
from pyrobnn.distributions.concrete import Concrete, concrete_log_density, relaxed_of
from pyrobnn.estimators import PerGroup
from pyrobnn.guides import MAP, Composite, ConcreteStructure, DeltaMixture, Guide, MeanField
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.structure import Edges
from tests.conformance.comparisons import assert_same, gradients, seeded, step
from tests.conformance.guide_models import Case
from tests.conformance.guide_suite import GuideConformance, held_to
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.layers.structure.networks import CellNetwork, Mixed, cell_model, images, mixed_model

STRUCTURE = Case("structure", mixed_model, lambda: (torch.randn(12, 3), torch.randn(12, 1)))
CELL = Case("cell", cell_model, lambda: images(12))


def loader(*tensors: Tensor, batch_size: int = 12) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def site_of(guide: Guide) -> Any:
    return next(iter(guide.layout.values()))


# -------------------------------------------------------------------------------------------- the conformance suite


@held_to([STRUCTURE], [STRUCTURE])
class TestConcreteStructureConformance(GuideConformance):
    """What every guide must do, for models all of whose sites are structure."""

    exact = False

    def make_guide(self, model: nn.Module, **options: Any) -> ConcreteStructure:
        return ConcreteStructure(model, temperature=0.8, beta=0.9, **options)

    def test_priors_that_change_are_followed(self) -> None:
        model, changed = mixed_model().double(), mixed_model(torch.tensor([1.0, 0.0, -1.0])).double()
        batch = (torch.randn(8, 3).double(), torch.randn(8, 1).double())
        guide = self.make_guide(model).double()
        step(model, guide, batch)
        model.load_state_dict(changed.state_dict())
        expected = seeded(lambda: gradients(changed, guide, batch))
        assert_same(seeded(lambda: gradients(model, guide, batch)), expected, rtol=1e-9)

    test_running_statistics_move_once_per_step = None  # there are none; see the composed guide
    test_recalibrated_statistics_are_those_of_the_draws = None


@held_to([CELL], [])
class TestComposedConformance(GuideConformance):
    """What every guide must do, with mean field on the weights beside the structure."""

    exact = True

    def make_guide(self, model: nn.Module, **options: Any) -> Composite:
        rules = [("*structure*", ConcreteStructure), ("*", functools.partial(MeanField, init_scale=0.1))]
        return Composite(model, rules, **options)

    def build(self, case: Case, scattered: bool = True) -> tuple[nn.Module, Guide, tuple[Tensor, Tensor]]:
        return super().build(CELL, scattered)

    def test_priors_that_change_are_followed(self) -> None:
        """See the class above and Composite's own."""


# ----------------------------------------------------------------------------------------------------------- the KL


class Rows(nn.Module):
    """R equal edges and nothing else."""

    def __init__(self, rows: int, num_choices: int, logits: Tensor | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        names = [str(index) for index in range(rows)]
        self.edges = Edges(names, [str(k) for k in range(num_choices)], logits=logits, temperature=temperature)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0 * self.edges.structure.sum()


def rows_model(rows: int, num_choices: int, **options: Any) -> SupervisedModel:
    net = Rows(rows, num_choices, **options)
    return SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=1).double()


def exact_kl(theta: Tensor, tau: float, beta: float, logits: Tensor, temperature: float) -> Tensor:
    """The relaxed KL of a choice of two by quadrature over the difference of the logs."""
    d = torch.linspace(-80.0, 80.0, 40_001, dtype=torch.float64)
    log_value = torch.stack([d, torch.zeros_like(d)], -1).log_softmax(-1)
    log_q = concrete_log_density(log_value, theta / beta, tau / beta)
    log_p = concrete_log_density(log_value, logits, temperature)
    return torch.trapezoid(log_q.exp() * (log_q - log_p), d)


def kl_of(model: SupervisedModel, guide: ConcreteStructure) -> Tensor:
    site = site_of(guide)
    return guide.divergence(guide.rsample(), {site.name: PriorTerm(site.prior)}).total


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_kl_estimate_and_its_gradient_against_quadrature(temperature: float) -> None:
    """4,000 draws side by side; the mean and its finite differences (step 1e-4) by quadrature; z-scores below 5."""
    rows, tau, beta = 4000, 0.7, 0.8
    theta = torch.tensor([0.6, -0.5], dtype=torch.float64)
    logits = torch.tensor([-0.2, 0.1])
    model = rows_model(rows, 2, logits=logits, temperature=temperature)
    site = "net.edges.structure"
    guide = ConcreteStructure(model, {site: theta.expand(rows, 2)}, temperature=tau, beta=beta, init_scale=0.0).double()
    torch.manual_seed(1)
    draws = guide.rsample()
    value = draws[site]
    prior: Any = guide.layout[site].prior
    log_p = concrete_log_density(relaxed_of(value), prior.base_dist.logits, prior.base_dist.temperature)
    total = guide.divergence(draws, {site: PriorTerm(prior)}).total
    (slopes,) = torch.autograd.grad(total, guide.flat_logits)
    arguments = (tau, beta, logits.double(), temperature)
    log_q = concrete_log_density(relaxed_of(value), theta / beta, tau / beta)
    assert z_of_mean((log_q - log_p).detach().unsqueeze(-1), exact_kl(theta, *arguments)) < Z
    torch.testing.assert_close(total.detach(), (log_q - log_p).sum().detach())
    for k in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[k] = 1e-4
        slope = (exact_kl(theta + shift, *arguments) - exact_kl(theta - shift, *arguments)) / 2e-4
        assert z_of_mean(slopes.view(rows, 2)[:, k : k + 1], slope) < Z


def test_the_density_of_a_draw_is_that_of_its_noise() -> None:
    """The shortcut (no dependence on logits) against the density itself, for choices and gates."""
    model = mixed_model().double()
    guide = ConcreteStructure(model, temperature=0.6, beta=0.7, init_scale=1.0).double()
    draws = guide.rsample()
    for site in guide.layout.values():
        terms = {site.name: PriorTerm(site.prior)}
        shortcut = guide.divergence(draws, terms).total
        copied = draws[site.name].detach()  # one that is not known to be a draw of the guide's
        general = guide.divergence(Draws({site.name: copied}), terms).total
        reference = guide.marginal(site.name).log_prob(copied) - site.prior.log_prob(copied)
        torch.testing.assert_close(shortcut, general)
        torch.testing.assert_close(shortcut, reference)


def test_at_one_temperature_the_relaxed_kl_does_not_depend_on_it() -> None:
    """Why lowering both temperatures does not turn it into the KL of the discrete choices."""
    model = rows_model(50, 3)
    site = "net.edges.structure"
    theta = {site: torch.randn(50, 3)}
    found = []
    for tau in (1.0, 0.1):
        guide = ConcreteStructure(model, theta, temperature=tau, anneal_prior=True, init_scale=0.0).double()
        found.append(seeded(lambda guide=guide: kl_of(model, guide)))
    torch.testing.assert_close(found[0], found[1])
    discrete = ConcreteStructure(model, theta, kl="discrete", init_scale=0.0).double()
    probabilities = theta[site].double().softmax(-1)
    expected = (probabilities * (probabilities * 3.0).log()).sum()
    torch.testing.assert_close(kl_of(model, discrete), expected)


def test_discrete_kl_of_gates() -> None:
    model = mixed_model().double()
    guide = ConcreteStructure(model, kl="discrete", init_scale=1.0).double()
    site = guide.layout["net.gate.gates.structure"]
    found = guide.divergence(guide.rsample(), {site.name: PriorTerm(site.prior)})
    open_ = dist.Bernoulli(guide.probabilities(site.name))
    expected = torch.distributions.kl_divergence(open_, dist.Bernoulli(torch.full((3,), 0.5).double())).sum()
    assert found.exact
    torch.testing.assert_close(found.total, expected)


def test_a_prior_of_another_family_on_the_simplex() -> None:
    class Composition(pyro.nn.PyroModule):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)

    model, batch = Composition(), (torch.randn(5, 3), torch.randn(5))
    guide = ConcreteStructure(model, example=batch, temperature=0.8)
    site, draws = guide.layout["weights"], guide.rsample()
    value = draws["weights"]
    expected = Concrete(0.8, guide.flat_logits).log_prob(value) - site.prior.log_prob(value)
    torch.testing.assert_close(guide.divergence(draws, {"weights": PriorTerm(site.prior)}).total, expected)
    step(model, guide, batch)


# ------------------------------------------------------------------------------------------- an enumerable toy


VALUES = torch.tensor([[0.0, 0.5, 1.0], [-0.6, 0.4, 0.9]])


class Toy(nn.Module):
    """Two edges with three fixed operations each, many times side by side; output j is of edge j alone."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.edges = Edges([f"{i}{edge}" for i in range(copies) for edge in "ab"], ["x", "y", "z"])
        self.register_buffer("values", VALUES.repeat(copies, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.edges.structure * self.values).sum(-1)


def toy_data() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets, and the exact posterior over the 3 × 3 structures."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0.5, 1.5, 8).unsqueeze(-1)
    y = torch.cat([0.62 * x, 0.55 * x], -1) + 0.3 * torch.randn(8, 2, generator=generator)
    by_edge = -0.5 * (y.unsqueeze(-1) - x.unsqueeze(-1) * VALUES).square().sum(0)
    joint = by_edge[0].unsqueeze(-1) + by_edge[1]
    return x, y, joint.flatten().softmax(0).view(3, 3)


def total_variation(first: Tensor, second: Tensor) -> float:
    return 0.5 * float((first - second).abs().sum())


@pytest.mark.statistical
def test_the_relaxed_models_posterior_approaches_the_discrete_one() -> None:
    """Importance sampling from the prior, 100,000 draws: total variation 0.25 and more at τ = 2, below 0.05 at 0.05."""
    x, y, exact = toy_data()
    found = []
    for tau in (2.0, 0.05):
        torch.manual_seed(2)
        draws = Concrete(tau, torch.zeros(2, 3)).sample((100_000,))
        means = x * (draws * VALUES).sum(-1).unsqueeze(1)
        weights = (-0.5 * (y - means).square().sum((1, 2))).softmax(0)
        joint = torch.zeros(9).index_add(0, 3 * draws[:, 0].argmax(-1) + draws[:, 1].argmax(-1), weights)
        found.append(total_variation(joint.view(3, 3), exact))
    assert found[0] > found[1]
    assert found[1] < 0.05


@pytest.mark.statistical
def test_the_guide_approaches_the_exact_posterior_over_structures() -> None:
    """80 fits side by side: total variation of the mean logits' product below 0.05 at τ = 0.1, above it at τ = 1."""
    copies, found = 80, []
    x, y, exact = toy_data()
    model = SupervisedModel(Toy(copies), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=8)
    for tau in (1.0, 0.1):
        pyro.set_rng_seed(1)
        temperature = schedules.Linear(1.0, tau, 60, hold=True)
        guide, elbo = ConcreteStructure(model, temperature=temperature, kl="discrete"), ELBO(2)
        optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
        mean, count, total = torch.zeros(2, 3), 0, 240
        with pyro.validation_enabled(False):
            for turn in range(total):
                optimizer.zero_grad()
                elbo.backward(model, guide, (x, y.repeat(1, copies)))
                optimizer.step()
                if turn >= total // 2:
                    optimizer.param_groups[0]["lr"] = 0.02
                    mean, count = mean + guide.flat_logits.detach().view(copies, 2, 3).mean(0), count + 1
        edges = (mean / count).softmax(-1)
        found.append(total_variation(edges[0].unsqueeze(-1) * edges[1], exact))
    assert found[0] > 0.1
    assert found[1] < 0.05


# ------------------------------------------------------------------------------------- draws, groups and schedules


def test_probabilities_are_the_frequencies_of_the_largest() -> None:
    """20,000 draws; z-scores below 5."""
    guide = ConcreteStructure(mixed_model(), temperature=0.5, beta=0.6, init_scale=1.0)
    torch.manual_seed(3)
    draws = guide.sample(20_000)
    for name, site in guide.layout.items():
        value = draws[name]
        hits = (
            (value > 0.5).float() if "gate" in name else torch.nn.functional.one_hot(value.argmax(-1), value.shape[-1])
        )
        assert z_of_mean(hits.double(), guide.probabilities(site.name).detach().double()) < Z


def test_straight_through_draws_are_one_hot_and_trained() -> None:
    model = mixed_model()
    guide = ConcreteStructure(model, straight_through=True)
    for draws in (guide.rsample(), guide.sample(5), guide()):
        for value in draws.values():
            assert bool(((value == 0) | (value == 1)).all())
    assert not guide.facts.density
    with pytest.raises(NotImplementedError, match="one-hot"):
        guide.log_prob(guide.sample(2))
    x, y = torch.randn(12, 3), torch.randn(12, 1)
    found = gradients(model, guide, (x, y))
    assert bool(found["loss"].isfinite())
    assert bool((found["guide.logits"] != 0).all())


def test_every_group_has_its_own_structure_on_its_own_part() -> None:
    model = cell_model()
    guide = Composite(model, [("*structure*", ConcreteStructure), ("*", MAP)])
    seen: list[tuple[int, Tensor]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((len(inputs[0]), module.edges.structure.detach().clone()))  # type: ignore[union-attr]

    handle = model.net.network.register_forward_pre_hook(look)
    batch = images(12)
    elbo = ELBO(estimator=PerGroup(4))
    elbo.loss_and_grads(model, guide, *batch)
    handle.remove()
    assert [rows for rows, _ in seen] == [3, 3, 3, 3]
    assert len({float(value[0, 0]) for _, value in seen}) == 4
    assert guide.parts[0].is_fitted
    assert int(guide.parts[0].num_steps) == 1  # one step, however many draws


@pytest.mark.statistical
def test_groups_have_the_expected_gradient_of_one_draw() -> None:
    """200 evaluations each on a whole batch and in two parts; z-scores below 5 (no BatchNorm in this network)."""
    model = mixed_model().double()
    guide = ConcreteStructure(model, init_scale=0.3).double()
    batch = (torch.randn(8, 3).double(), torch.randn(8, 1).double())
    means = []
    for elbo in (ELBO(), ELBO(estimator=PerGroup(2))):
        torch.manual_seed(4)
        means.append(torch.stack([gradients(model, guide, batch, elbo)["guide.logits"] for _ in range(200)]))
    difference = means[0].mean(0) - means[1].mean(0)
    error = (means[0].var(0) / 200 + means[1].var(0) / 200).sqrt()
    assert float((difference / error).abs().max()) < Z


def test_schedules_count_gradient_steps_only() -> None:
    model, batch = mixed_model(), (torch.randn(12, 3), torch.randn(12, 1))
    temperature = schedules.Linear(2.0, 1.0, 3)
    guide = ConcreteStructure(model, temperature=temperature, beta=lambda step: 1.0 / (1 + step))
    elbo = ELBO(num_particles=2)
    assert (guide.temperature, guide.beta) == (2.0, 1.0)
    for expected in ((2.0, 1.0), (1.5, 0.5), (1.0, 1.0 / 3.0)):
        elbo.backward(model, guide, batch)
        elbo.loss(model, guide, *batch)
        guide.sample(2)
        assert (guide.temperature, guide.beta) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"temperature: schedule: it ends after 3 steps"):
        elbo.backward(model, guide, batch)


def test_fit_refuses_a_schedule_that_ends_before_it_does() -> None:
    model = mixed_model()
    guide = ConcreteStructure(model, beta=schedules.Linear(1.0, 0.5, 3, every=2))
    batches = loader(torch.randn(24, 3), torch.randn(24, 1))
    before = guide.flat_logits.detach().clone()
    with pytest.raises(ValueError, match=r"beta: its schedule ends after 6 steps.*until step 8"):
        pb.fit(model, guide, batches, epochs=4, progress=False)
    assert torch.equal(guide.flat_logits, before)
    pb.fit(model, guide, batches, epochs=3, progress=False)
    assert guide.beta == 0.5
    with pytest.raises(ValueError, match="until step 8"):
        pb.fit(model, guide, batches, epochs=1, progress=False)


def test_the_counter_stays_where_it_is_read() -> None:
    guide = ConcreteStructure(mixed_model())
    guide.to("meta")
    assert guide.flat_logits.device.type == "meta"
    assert guide.num_steps.device.type == "cpu"


def test_structure_that_is_not_learned_stays_as_it_is() -> None:
    model = cell_model()
    rules = [("*structure*", functools.partial(ConcreteStructure, learned=False, init_scale=0.0)), ("*", MAP)]
    guide = Composite(model, rules)
    x, y = images()
    pb.fit(model, guide, loader(x, y), epochs=2, progress=False)
    part = guide.parts[0]
    assert bool((part.flat_logits == 0).all())
    site = site_of(part)
    torch.testing.assert_close(part.probabilities(site.name), torch.full(site.shape, 1.0 / 3.0))


@pytest.mark.parametrize("weights", [MAP, MeanField, functools.partial(DeltaMixture, num_members=2)])
def test_it_composes_with_families_of_weights(weights: Any) -> None:
    torch.manual_seed(5)
    model = cell_model()
    guide = Composite(model, [("*structure*", ConcreteStructure), ("*", weights)])
    x, y = images()
    logits = guide.parts[0].flat_logits.detach().clone()
    history = pb.fit(model, guide, loader(x, y), epochs=3, lr=1e-2, progress=False)
    assert len(history.elbo) == 3
    assert not torch.equal(guide.parts[0].flat_logits, logits)
    looped = pb.predict(model, guide, x, num_samples=6, seed=0, method="loop").mean
    torch.testing.assert_close(looped.sum(-1), torch.ones(len(x)))
    vmapped = pb.predict(model, guide, x, num_samples=6, seed=0, method="vmap").mean
    torch.testing.assert_close(vmapped, looped)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(6)
    model = cell_model(temperature=0.9)
    family = functools.partial(
        ConcreteStructure, temperature=schedules.Exponential(2.0, 0.1, floor=0.5), beta=0.8, kl="discrete"
    )
    guide = Composite(model, [("*structure*", family), ("*", MAP)])
    x, y = images()
    pb.fit(model, guide, loader(x, y), epochs=2, lr=1e-2, progress=False)
    pb.save(tmp_path, model, guide)
    loaded_model, loaded = pb.load(tmp_path, CellNetwork())
    assert_same(loaded.state_dict(), guide.state_dict())
    part, original = loaded.parts[0], guide.parts[0]  # type: ignore[attr-defined]
    assert (part.temperature, part.beta, part.kl) == (original.temperature, original.beta, original.kl)
    assert int(part.num_steps) == 4
    found = loaded_model.net.site_priors["edges.structure"].conditional()  # type: ignore[union-attr]
    assert float(found.base_dist.temperature) == pytest.approx(0.9)
    assert_same(seeded(lambda: loaded.sample(3)), seeded(lambda: guide.sample(3)))
    expected = seeded(lambda: gradients(model, guide, (x, y)))
    assert_same(seeded(lambda: gradients(loaded_model, loaded, (x, y))), expected)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    x, y = torch.randn(24, 3), torch.randn(24, 1)

    def run(epochs: int, path: Path) -> ConcreteStructure:
        torch.manual_seed(7)
        model = mixed_model()
        guide = ConcreteStructure(model, temperature=schedules.Exponential(2.0, 0.1, floor=0.5))
        pb.fit(model, guide, loader(x, y), epochs=epochs, seed=0, progress=False, checkpoint=path, resume=True)
        return guide

    whole = run(4, tmp_path / "whole")
    run(2, tmp_path / "parts")
    assert_same(run(4, tmp_path / "parts").state_dict(), whole.state_dict())


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"temperature": -1.0}, "temperature: expected a positive number"),
        ({"temperature": "cold"}, "temperature: expected a positive number or a schedule"),
        ({"beta": 0.0}, "beta: expected a positive number"),
        ({"beta": lambda step: -1.0}, "beta: expected a positive number at each step, but the schedule gave -1.0"),
        ({"init_scale": -1.0}, "init_scale: expected a standard deviation"),
        ({"kl": "exact"}, "kl: expected 'relaxed' or 'discrete'"),
        ({"init": {"net.nothing": torch.zeros(3)}}, "init: there is no site 'net.nothing'"),
        ({"init": {"net.gate.gates.structure": torch.zeros(2)}}, r"init: the logits of the site .* have shape \(2,\)"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConcreteStructure(mixed_model(), **options)


def test_weights_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"site 'net.stem.weight'.*Normal.*Composite"):
        ConcreteStructure(cell_model())
    with pytest.raises(TypeError, match="init: expected starting logits by site, or None, got Mixed"):
        ConcreteStructure(mixed_model(), Mixed())  # type: ignore[arg-type]


def test_a_prior_without_discrete_choices_is_refused_a_discrete_kl() -> None:
    class Composition(pyro.nn.PyroModule):
        def forward(self) -> None:
            pyro.sample("weights", dist.Dirichlet(torch.ones(3)))

    model = Composition()
    guide = ConcreteStructure(model, example=(), kl="discrete")
    with pytest.raises(ValueError, match="kl: the prior of the site 'weights' is no relaxed choice"):
        guide.divergence(guide.rsample(), {"weights": PriorTerm(guide.layout["weights"].prior)})


def test_one_draw_serves_all_cells_that_share_a_site() -> None:
    model = cell_model()
    guide = Composite(model, [("*structure*", ConcreteStructure), ("*", MAP)])
    seen = []
    cells = (model.net.network.first, model.net.network.second)  # type: ignore[union-attr]
    handles = [c.choices[0].register_forward_pre_hook(lambda m, _: seen.append(m.edges.structure)) for c in cells]  # type: ignore[union-attr,index]
    with SubstituteMessenger(guide.rsample()):
        model(images(4)[0])
    for handle in handles:
        handle.remove()
    assert len(seen) == 2
    assert seen[0] is seen[1]
