"""Softmax is Pyro's Categorical, in everything one can ask of it."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from pyrobnn.distributions.softmax import Softmax, rows_first

OUTPUTS = torch.tensor([[0.3, -1.2, 2.0, 0.1], [0.0, 0.7, -0.4, -2.0], [1.0, 1.5, 0.2, 0.4]])


@pytest.fixture
def pair(validated: bool) -> tuple[Softmax, dist.Categorical]:
    return Softmax(OUTPUTS), dist.Categorical(logits=OUTPUTS)


def test_shapes_and_support(pair: tuple[Softmax, dist.Categorical]) -> None:
    ours, pyros = pair
    assert (ours.batch_shape, ours.event_shape) == (pyros.batch_shape, pyros.event_shape)
    values = torch.tensor([-1.0, 0.0, 0.5, 3.0, 4.0])
    assert torch.equal(ours.support.check(values), pyros.support.check(values))
    assert ours.support.is_discrete and ours.has_enumerate_support


@pytest.mark.parametrize("name", ["logits", "probs"])
def test_parameters(pair: tuple[Softmax, dist.Categorical], name: str) -> None:
    torch.testing.assert_close(getattr(pair[0], name), getattr(pair[1], name))


@pytest.mark.parametrize("value", [torch.tensor([2, 0, 3]), torch.tensor([[2.0, 0.0, 3.0], [1, 1, 0]])])
def test_log_prob_and_its_gradient(pair: tuple[Softmax, dist.Categorical], value: Tensor) -> None:
    results = []
    for family in (Softmax, lambda outputs: dist.Categorical(logits=outputs)):
        outputs = OUTPUTS.clone().requires_grad_()
        score = family(outputs).log_prob(value)
        score.sum().backward()
        results.append((score.detach(), outputs.grad))
    torch.testing.assert_close(*results)


def test_enumeration_entropy_and_expansion(pair: tuple[Softmax, dist.Categorical]) -> None:
    ours, pyros = pair
    for expand in (True, False):
        assert torch.equal(ours.enumerate_support(expand), pyros.enumerate_support(expand))
    torch.testing.assert_close(ours.entropy(), pyros.entropy())
    assert ours.expand((3,)) is ours
    value = torch.tensor([[2, 0, 3], [1, 1, 0]])
    torch.testing.assert_close(ours.expand((2, 3)).log_prob(value), pyros.expand((2, 3)).log_prob(value))


def test_draws_are_those_of_categorical(pair: tuple[Softmax, dist.Categorical]) -> None:
    draws = []
    for distribution in pair:
        pyro.set_rng_seed(0)
        draws.append((distribution.sample(), distribution.sample((5, 2))))
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 15), (5, 16), (7,)])
@pytest.mark.parametrize("normalize", [torch.softmax, torch.log_softmax])
def test_many_rows_at_a_time_are_normalized_as_each(normalize: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    outputs = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows_first(normalize, outputs), normalize(outputs, -1))


def test_validation_refuses_labels_outside_the_classes() -> None:
    with pytest.raises(ValueError, match="support"):
        Softmax(OUTPUTS).log_prob(torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="outputs"):
        Softmax(torch.tensor([[0.0, float("nan")]]), validate_args=True)


def test_works_in_a_model_under_vmap() -> None:
    def model(outputs: Tensor, y: Tensor) -> Tensor:
        with pyro.plate("data", 3):
            return pyro.sample("y", Softmax(outputs), obs=y)

    y = torch.tensor([2, 0, 3])
    trace = poutine.trace(model).get_trace(OUTPUTS, y)
    expected = dist.Categorical(logits=OUTPUTS).log_prob(y)
    torch.testing.assert_close(trace.log_prob_sum(), expected.sum())
    with pyro.validation_enabled(False):
        batched = torch.func.vmap(lambda outputs: Softmax(outputs).log_prob(y))(torch.stack([OUTPUTS, 2 * OUTPUTS]))
    torch.testing.assert_close(batched[0], expected)


def test_an_ignored_value_has_no_log_prob_and_no_gradient(pair: tuple[Softmax, dist.Categorical]) -> None:
    outputs = OUTPUTS.clone().requires_grad_()
    value, known = torch.tensor([2, 9, 3]), torch.tensor([True, False, True])
    score = Softmax(outputs, ignore_index=9).log_prob(value)
    score.sum().backward()
    expected = pair[1].log_prob(value.clamp(max=3)).masked_fill(~known, 0.0)
    torch.testing.assert_close(score.detach(), expected)
    assert outputs.grad is not None
    assert torch.equal(outputs.grad[1], torch.zeros(4))
    assert bool((outputs.grad[known] != 0).all())
    expanded = Softmax(OUTPUTS, ignore_index=9).expand((2, 3))
    torch.testing.assert_close(expanded.log_prob(value.expand(2, 3)), expected.expand(2, 3))


def test_torchs_own_ignored_value_is_not_ignored_where_another_is() -> None:
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        Softmax(OUTPUTS, ignore_index=9).log_prob(torch.tensor([2, -100, 3]))
