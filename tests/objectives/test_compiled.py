"""Compiled training steps: the numbers of uncompiled ones, a graph for each form of batch, what is no graph."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.core import compilation
from pyrobnn.objectives.compiled import CompiledObjective
from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.objectives.program import Program, StepInputs

ROWS = 20
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # of parameters after a few steps in single precision


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """A step that is silently run uncompiled fails the test that expects a graph."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile: training runs uncompiled")
        yield


def regression(net: nn.Module | None = None, **options: Any) -> pb.SupervisedModel:
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    options = {"prior": dist.Normal(0.0, 1.0)} | options
    return pb.SupervisedModel(net, pb.likelihoods.Normal(), num_data=ROWS, **options)


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 3, generator=generator)
    return x, x[:, :1].sin() + 0.1 * torch.randn(ROWS, 1, generator=generator)


def loader(*tensors: Tensor, batch_size: int = ROWS) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors or rows()), batch_size=batch_size)


def fitted(
    compile: bool, make: Callable[[], Any], make_guide: Callable[..., Any], batches: Any = None, **options: Any
) -> tuple[pb.History, dict[str, Tensor]]:
    model = make()
    guide = make_guide(model)
    if callable(options.get("elbo")):
        options["elbo"] = options["elbo"]()
    options = {"epochs": 3, "lr": 0.01, "seed": 2, "progress": False, "compile": compile} | options
    history = pb.fit(model, guide, batches or loader(), **options)
    return history, {f"guide.{k}": v for k, v in guide.state_dict().items()} | dict(model.state_dict())


def assert_same(*arguments: Any, **options: Any) -> None:
    """Histories and tensors of an uncompiled and of a compiled run."""
    expected, tensors = fitted(False, *arguments, **options)
    found, others = fitted(True, *arguments, **options)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)
    for name in ("elbo", "log_likelihood", "kl"):
        assert found.latest[name] == pytest.approx(expected.latest[name], rel=1e-5)


class TestSameNumbers:
    def test_of_a_mean_field_with_a_learned_noise_and_a_smaller_last_batch(self) -> None:
        assert_same(regression, pb.guides.MeanField, loader(batch_size=8))

    def test_of_several_draws_in_a_step(self) -> None:
        assert_same(regression, pb.guides.MeanField, elbo=lambda: pb.objectives.ELBO(num_particles=3))

    def test_of_a_point(self) -> None:
        assert_same(regression, pb.guides.MAP)

    def test_of_a_covariance_of_low_rank(self) -> None:
        assert_same(regression, lambda model: pb.guides.LowRankNormal(model, rank=2))

    def test_of_priors_that_are_learned_or_of_another_family(self) -> None:
        rules = [("0.*", dist.StudentT(5.0, 0.0, 1.0)), ("*", dist.Normal(0.0, 1.0))]
        assert_same(lambda: regression(prior=rules), pb.guides.MeanField)

    def test_of_batch_norm_dropout_and_pooling(self) -> None:
        def images() -> pb.SupervisedModel:
            torch.manual_seed(0)
            parts = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.MaxPool2d(2)]
            net = nn.Sequential(*parts, nn.Dropout(0.2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 3))
            return pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=ROWS)

        generator = torch.Generator().manual_seed(3)
        x = torch.randn(ROWS, 1, 4, 4, generator=generator)
        y = torch.randint(3, (ROWS,), generator=generator)
        assert_same(images, pb.guides.MeanField, loader(x, y))

    def test_of_rows_with_weights_and_clipped_gradients(self) -> None:
        weights = torch.linspace(0.0, 2.0, ROWS)
        assert_same(regression, pb.guides.MeanField, loader(*rows(), weights), clip_norm=0.1)

    def test_of_joined_batches(self) -> None:
        assert_same(regression, pb.guides.MeanField, loader(batch_size=10), accumulate=2)

    def test_of_a_schedule_of_the_temperature_in_one_graph(self) -> None:
        schedule = pb.schedules.Linear(0.1, 1.0, 3)
        assert_same(regression, pb.guides.MeanField, elbo=lambda: pb.objectives.ELBO(temperature=schedule))

    def test_of_a_run_that_is_resumed(self, tmp_path: Any) -> None:
        whole = fitted(True, regression, pb.guides.MeanField, epochs=4)[1]
        fitted(True, regression, pb.guides.MeanField, epochs=2, checkpoint=tmp_path / "run")
        again = fitted(True, regression, pb.guides.MeanField, epochs=4, checkpoint=tmp_path / "run", resume=True)[1]
        for name, tensor in whole.items():
            torch.testing.assert_close(again[name], tensor, **CLOSE)


class TestGraphs:
    def test_a_weight_that_changes_makes_no_new_one(self) -> None:
        model = regression()
        elbo = pb.objectives.ELBO(temperature=lambda step: 0.1 * (1 + step))
        guide, compiled = pb.guides.MAP(model), CompiledObjective(elbo)
        self.backward(compiled, model, guide, 8, 8, 8)
        assert compiled.num_graphs == 1
        assert compiled.objective.parts.temperature == pytest.approx(0.3)

    def backward(self, compiled: CompiledObjective, model: Any, guide: Any, *sizes: int) -> None:
        x, y = rows()
        for size in sizes:
            compiled.backward(model, guide, (x[:size], y[:size]), scale=None)

    def test_there_is_one_for_each_form_of_batch_and_none_is_made_again(self) -> None:
        model = regression()
        guide, compiled = pb.guides.MeanField(model), CompiledObjective(pb.objectives.ELBO())
        self.backward(compiled, model, guide, 8, 4, 8, 4, 8)
        assert compiled.num_graphs == 2
        assert compiled.reason is None
        assert compiled.objective.num_steps == 5

    def test_a_prior_that_was_changed_makes_a_new_one(self) -> None:
        model = regression()
        guide, compiled = pb.guides.MAP(model), CompiledObjective(pb.objectives.ELBO())
        self.backward(compiled, model, guide, ROWS)
        before = guide.flat_loc.grad.clone()
        for name, buffer in model.named_buffers():
            if name.endswith("scale"):
                buffer.mul_(0.1)
        guide.flat_loc.grad = None
        self.backward(compiled, model, guide, ROWS)
        found, guide.flat_loc.grad = guide.flat_loc.grad, None
        pb.objectives.ELBO().backward(model, guide, rows(), scale=None)
        torch.testing.assert_close(found, guide.flat_loc.grad, **CLOSE)
        assert not torch.allclose(found, before, rtol=0.1)

    @pytest.mark.parametrize("what", ["statistics", "scales"])
    def test_what_a_callback_freezes_makes_a_new_one(self, what: str) -> None:
        def trained(compile: bool) -> dict[str, Tensor]:
            torch.manual_seed(0)
            model = regression(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)))
            guide = pb.guides.MeanField(model, init_scale=0.1)

            def freeze(history: pb.History) -> None:
                if what == "statistics":
                    model.net.network[1].eval()
                else:
                    [parameter.requires_grad_(False) for parameter in guide.scale_parameters()]

            options = {"epochs": 4, "lr": 0.01, "seed": 2, "progress": False, "callbacks": [freeze]}
            pb.fit(model, guide, loader(), compile=compile, **options)  # type: ignore[arg-type]
            return {f"guide.{k}": v for k, v in guide.state_dict().items()} | dict(model.state_dict())

        found = trained(True)
        for name, tensor in trained(False).items():
            torch.testing.assert_close(found[name], tensor, **CLOSE)

    def test_gradients_add_to_those_that_are_there(self) -> None:
        model = regression()
        guide, compiled = pb.guides.MAP(model), CompiledObjective(pb.objectives.ELBO())
        self.backward(compiled, model, guide, ROWS)
        once = guide.flat_loc.grad.clone()
        self.backward(compiled, model, guide, ROWS)
        torch.testing.assert_close(guide.flat_loc.grad, 2.0 * once, **CLOSE)

    def test_gradients_of_batches_of_two_forms_add_up(self) -> None:
        model = regression()
        guide, compiled = pb.guides.MAP(model), CompiledObjective(pb.objectives.ELBO())
        x, y = rows()
        elbo = pb.objectives.ELBO()
        for _ in range(2):
            guide.flat_loc.grad = None
            self.backward(compiled, model, guide, 8, 4, 8)
        found, guide.flat_loc.grad = guide.flat_loc.grad, None
        for size in (8, 4, 8):
            elbo.backward(model, guide, (x[:size], y[:size]), scale=None)
        torch.testing.assert_close(found, guide.flat_loc.grad, **CLOSE)

    def test_batches_of_many_forms_run_uncompiled_after_the_fourth(self) -> None:
        model = regression()
        guide, compiled = pb.guides.MAP(model), CompiledObjective(pb.objectives.ELBO())
        compiled._programs = dict.fromkeys(range(4))  # as if there were four
        with pytest.warns(UserWarning, match="more than 4 forms"):
            self.backward(compiled, model, guide, 8, 9)
        assert guide.flat_loc.grad is not None

    def test_a_loss_that_is_not_finite_is_named(self) -> None:
        model = regression()
        guide, compiled = pb.guides.MeanField(model), CompiledObjective(pb.objectives.ELBO())
        self.backward(compiled, model, guide, ROWS)
        with torch.no_grad():
            guide.flat_loc[0] = torch.nan
        guide.flat_loc.grad = None
        with pytest.raises(NonFiniteLossError, match=r"the draw of the site 'net\.0\.weight'"):
            self.backward(compiled, model, guide, ROWS)
        assert guide.flat_loc.grad is None


class Branching(nn.Module):
    """A network whose code depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if float(x.sum()) > 1e6 else self.linear(x).sin()


class Chance(nn.Module):
    """A network that draws a random number of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * random.random()


class TestUncompiled:
    @pytest.mark.parametrize(
        ("net", "reason"),
        [(Branching, "could not be compiled.*value out of a tracing tensor"), (Chance, "random numbers of Python")],
    )
    def test_networks_that_are_no_graph_run_as_usual_after_one_warning(self, net: Any, reason: str) -> None:
        with pytest.warns(UserWarning, match=f"training runs uncompiled, because.*{reason}") as caught:
            _, found = fitted(True, lambda: regression(net()), pb.guides.MeanField)
        assert len([one for one in caught if "compile:" in str(one.message)]) == 1
        if net is Branching:
            _, expected = fitted(False, lambda: regression(net()), pb.guides.MeanField)
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor, **CLOSE)

    def test_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
        with pytest.warns(UserWarning, match=r"there is no C\+\+ compiler") as caught:
            _, found = fitted(True, regression, pb.guides.MeanField)
        assert len([one for one in caught if "compile:" in str(one.message)]) == 1
        for name, tensor in fitted(False, regression, pb.guides.MeanField)[1].items():
            torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=0.0)

    def test_a_later_step_that_cannot_be_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = regression()
        guide, compiled = pb.guides.MAP(model), CompiledObjective(pb.objectives.ELBO())

        def failing(recording: Any, *, device: Any) -> Any:
            calls: list[int] = []

            @torch.no_grad()
            def run(*inputs: Tensor) -> Any:
                calls.append(1)
                if len(calls) > 1:
                    raise RuntimeError("something is of another kind")
                return recording.graph(*inputs)

            return run

        monkeypatch.setattr(compilation, "compiled", failing)
        compiled.backward(model, guide, rows(), scale=None)
        first, guide.flat_loc.grad = guide.flat_loc.grad.clone(), None
        with pytest.warns(UserWarning, match="a later step could not be compiled.*of another kind"):
            compiled.backward(model, guide, rows(), scale=None)
        torch.testing.assert_close(guide.flat_loc.grad, first)

    @pytest.mark.parametrize(
        ("make_guide", "elbo", "reason"),
        [
            (lambda model: pb.guides.DeltaMixture(model, 2), None, "training step of this guide"),
            (pb.guides.MeanField, lambda: pb.objectives.ELBO(estimator="flipout"), "training step of this guide"),
            (pb.guides.MeanField, pb.objectives.AdversarialELBO, "further terms"),
        ],
    )
    def test_guides_and_objectives_that_are_no_graph(self, make_guide: Any, elbo: Any, reason: str) -> None:
        with pytest.warns(UserWarning, match=reason):
            fitted(True, regression, make_guide, elbo=elbo, epochs=1)

    def test_a_graph_with_other_gradients_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = Program.run

        def wrong(program: Program, batch: StepInputs) -> Any:
            values, gradients = run(program, batch)
            gradients[-1].mul_(2.0)
            return values, gradients

        monkeypatch.setattr(Program, "run", wrong)
        with pytest.warns(UserWarning, match="gave other gradients"):
            _, found = fitted(True, regression, pb.guides.MeanField)
        for name, tensor in fitted(False, regression, pb.guides.MeanField)[1].items():
            torch.testing.assert_close(found[name], tensor, **CLOSE)
