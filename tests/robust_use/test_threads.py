"""Threads: each gets what it would get alone, and nothing is left behind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.core.pyro_compat import is_handler_active
from pyrobnn.guides import MAP, DeltaMixture, Laplace, MeanField
from pyrobnn.sampling import HMC, NUTS, SGLD

X = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Threads are switched every few operations, and leave Pyro's handlers and validation as they were."""
    interval, validates = sys.getswitchinterval(), pyro.settings.get("validate_distributions_pyro")
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)
    assert not is_handler_active()
    assert pyro.settings.get("validate_distributions_pyro") == validates


def classifier(seed: int, *middle: nn.Module) -> pb.SupervisedModel:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 6), *middle, nn.Tanh(), nn.Linear(6, 2))
    return pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=16)


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """What the functions return, each in a thread of its own; raises what one of them raises."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def run(index: int) -> None:
        start.wait()
        try:
            results[index] = functions[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def members_with_statistics(model: Any) -> Any:
    """Two members whose batch statistics differ."""
    guide = DeltaMixture(model, 2)
    pb.fit(model, guide, [(X, Y)], epochs=2, lr=0.1, progress=False)
    return guide


CASES: dict[str, Any] = {
    "mean field": (lambda seed: classifier(seed), MeanField),
    "dropout in training mode": (lambda seed: classifier(seed, nn.Dropout(0.5)), MeanField),
    "members with statistics": (lambda seed: classifier(seed, nn.BatchNorm1d(6)), members_with_statistics),
    "linearized": (lambda seed: classifier(seed), lambda model: Laplace(model, structure="full").fit(model, [(X, Y)])),
}


@pytest.mark.parametrize("one_model", [True, False], ids=["one model", "two models"])
@pytest.mark.parametrize(("make", "posterior"), CASES.values(), ids=CASES)
def test_predictions_in_two_threads(make: Any, posterior: Any, one_model: bool) -> None:
    models = [make(0)] * 2 if one_model else [make(0), make(1)]
    guides = [posterior(model) for model in models]

    def predicted(index: int, times: int) -> list[Tensor]:
        pair = models[index], guides[index]
        return [pb.predict(*pair, X, 4, seed=index).mean for _ in range(times)]

    alone = [predicted(index, 1)[0] for index in range(2)]
    found = at_once(lambda: predicted(0, 15), lambda: predicted(1, 15))
    for means, right in zip(found, alone, strict=True):
        torch.testing.assert_close(means, [right] * 15, rtol=0.0, atol=0.0)
    assert all(module.training for model in models for module in model.modules())


def fitted(model: Any, seed: int) -> list[Tensor]:
    guide = MeanField(model)
    pb.fit(model, guide, [(X, Y)], epochs=5, lr=0.05, seed=seed, validation=[(X, Y)], progress=False)
    return [*guide.parameters()]


def sampled(model: Any, kernel: Any, seed: int) -> list[Tensor]:
    data: Any = [(X[:8], Y[:8]), (X[8:], Y[8:])]
    options: dict[str, Any] = {"num_samples": 3, "warmup_steps": 5, "seed": seed, "progress": False}
    return list(pb.sample(model, data, kernel=kernel, **options).chain_draws(0).values())


SEEDED: dict[str, Callable[[Any, int], list[Tensor]]] = {
    "fit": fitted,
    "SGLD": lambda model, seed: sampled(model, SGLD(1e-4), seed),
    "HMC": lambda model, seed: sampled(model, HMC(step_size=0.01, compile=False), seed),
    "NUTS": lambda model, seed: sampled(model, NUTS(step_size=0.01, adapt_step_size=False, max_tree_depth=1), seed),
}


@pytest.mark.parametrize("run", SEEDED.values(), ids=SEEDED)
def test_seeded_runs_in_three_threads(run: Callable[[Any, int], list[Tensor]]) -> None:
    models = [classifier(seed) for seed in range(3)]
    alone = [run(model, seed) for seed, model in enumerate(models)]
    before = torch.get_rng_state()
    found = at_once(*[lambda seed=seed, model=model: run(model, seed) for seed, model in enumerate(models)])
    torch.testing.assert_close(found, alone, rtol=0.0, atol=0.0)
    assert torch.equal(before, torch.get_rng_state())


def test_points_are_trained_in_two_threads_without_a_seed() -> None:
    """Epochs alternate; no random numbers are needed."""

    def trained(model: Any, guide: Any) -> list[Tensor]:
        pb.fit(model, guide, [(X, Y)], epochs=20, lr=0.05, progress=False)
        return list(guide.parameters())

    alone = [trained(model, MAP(model)) for model in (classifier(0), classifier(1))]
    pairs = [(model, MAP(model)) for model in (classifier(0), classifier(1))]
    found = at_once(*[lambda pair=pair: trained(*pair) for pair in pairs])
    # A thread that was mixed up with the other would be off by far more than the rounding of matrix products, which
    # depends on where in memory their operands are.
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)


def test_predictions_beside_training() -> None:
    """A prediction waits for the end of an epoch at most: many are made before training ends."""
    trained, used = classifier(0), classifier(1)
    draws = MAP(used).sample(4)
    right = pb.predict(used, draws, X, 4).mean
    is_over, found = threading.Event(), []

    def train() -> None:
        try:
            rows = list(zip(X.split(1), Y.split(1), strict=True))
            pb.fit(trained, MAP(trained), rows, epochs=50, progress=False, callbacks=[lambda _: len(found) > 5])
        finally:
            is_over.set()

    def use() -> None:
        while not is_over.is_set():
            found.append(pb.predict(used, draws, X, 4).mean)

    at_once(train, use)
    torch.testing.assert_close(found, [right] * len(found), rtol=0.0, atol=0.0)
    assert found


@pytest.mark.parametrize("argument", ["model", "guide"])
def test_one_model_or_guide_is_not_trained_twice_at_once(argument: str) -> None:
    model = classifier(0)
    guide = MAP(model)
    other = model if argument == "model" else classifier(0)
    messages: list[str] = []

    def again(_: Any) -> None:
        def run() -> None:
            try:
                pb.fit(other, MAP(model) if argument == "model" else guide, [(X, Y)], epochs=1, progress=False)
            except RuntimeError as error:
                messages.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    pb.fit(model, guide, [(X, Y)], epochs=1, progress=False, callbacks=[again])
    assert len(messages) == 1 and messages[0].startswith(f"{argument}: another thread is training or sampling")
