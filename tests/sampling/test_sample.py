"""sample(): its laws, its bookkeeping, bad luck, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn.sampling import (
    SGHMC,
    SGLD,
    ChainResult,
    Cyclical,
    FullBatchKernel,
    NonFiniteLossError,
    SamplingDivergedWarning,
)
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.monte_carlo import Z, z_of_mean, z_of_means, z_of_variances
from tests.guides.test_base import Sites
from tests.sampling.models import classifier, loader, quick, rows

# ------------------------------------------------------------------------------------------------- the potential


@pytest.mark.statistical
def test_constrained_sites_have_their_own_law() -> None:
    """300 chains on Gamma(6, 3) and no data, last draws: mean 2 and variance 2/3 within 5 standard errors.

    Sampled on the logarithm; without its Jacobian the mean would be 5/3, which is 7 standard errors off.
    """
    guide = quick(
        Sites(w=dist.Gamma(6.0, 3.0)),
        (),
        kernel=SGHMC(0.01, friction=0.2),
        num_samples=1,
        warmup_steps=200,
        num_chains=300,
        init="prior",
    )
    draws = guide.by_chain()["w"].squeeze(-1).double()
    assert z_of_mean(draws, 2.0) < Z
    assert z_of_mean((draws - 2.0).square(), 2.0 / 3.0) < Z
    assert z_of_mean(draws, 5.0 / 3.0) > Z


@pytest.mark.statistical
def test_minibatches_sample_the_posterior_at_small_steps() -> None:
    """SGLD on batches of 10 of 20 data, 100 chains: means within 0.1 sd, variances within 15 %, of them 7 % noise."""
    data = ConjugateRegression(num_data=20, dim=1, noise=1.0)
    batches = DataLoader(TensorDataset(data.x, data.y), batch_size=10, shuffle=True)
    start = {"net.weight": data.mean[:-1].unsqueeze(0), "net.bias": data.mean[-1:]}
    guide = quick(
        data.model(),
        batches,
        kernel=SGLD(0.005),
        num_samples=100,
        warmup_steps=60,
        thinning=5,
        num_chains=100,
        init=start,
    )
    scaled = (guide.flat_draws(torch.arange(10_000)) - data.mean) / torch.linalg.inv(data.precision).diagonal().sqrt()
    assert float(scaled.mean(0).abs().max()) < 0.1
    assert float((scaled.square().mean(0) - 1.0).abs().max()) < 0.15


@pytest.mark.statistical
def test_one_chain_has_the_law_of_many() -> None:
    """200 draws of one chain, 12 steps apart, which makes them all but independent, against one of each of 300 chains.

    Means and variances; z-scores below 5.
    """
    data = ConjugateRegression(num_data=20, dim=1, noise=1.0)
    start = {"net.weight": data.mean[:-1].unsqueeze(0), "net.bias": data.mean[-1:]}
    options = {"kernel": SGHMC(0.01, friction=0.3), "warmup_steps": 40, "thinning": 12, "init": start}
    one = quick(data.model(), (data.x, data.y), num_samples=200, **options).flat_draws(torch.arange(200))
    many = quick(data.model(), (data.x, data.y), num_samples=1, num_chains=300, **options).flat_draws(torch.arange(300))
    assert z_of_means(one, many) < Z
    assert z_of_variances(one, many) < Z
    assert float(one.var(0).min() / many.var(0).max()) > 0.3


# ------------------------------------------------------------------------------------------- the run's bookkeeping


class _Recording(SGLD):
    """Adds one at each step instead of moving, so that draws tell their step."""

    def advance(self, flat: Tensor, *args: Any) -> None:
        flat.add_(1.0)


@pytest.mark.parametrize(
    ("warmup_steps", "thinning", "steps"), [(0, 1, [1, 2, 3]), (0, 4, [4, 8, 12]), (5, 2, [7, 9, 11])]
)
def test_burn_in_and_thinning(warmup_steps: int, thinning: int, steps: list[int]) -> None:
    start = {"net.0.weight": torch.zeros(4, 3)}
    guide = quick(
        classifier(), kernel=_Recording(1.0), warmup_steps=warmup_steps, thinning=thinning, num_chains=2, init=start
    )
    assert guide.by_chain()["net.0.weight"][..., 0, 0].tolist() == [steps, steps]


def test_thinning_counts_the_sampling_steps_of_cycles() -> None:
    kernel = Cyclical(_Recording(1.0), cycle_length=5, exploration=0.6)
    guide = quick(classifier(), kernel=kernel, num_samples=5, thinning=1, init={"net.0.weight": torch.zeros(4, 3)})
    assert guide.by_chain()["net.0.weight"][0, :, 0, 0].tolist() == [4, 5, 9, 10, 14]
    assert guide.stats["cycle"].tolist() == [[0, 0, 1, 1, 2]]


def test_the_seed_determines_the_draws() -> None:
    first, second, third = (quick(classifier(), loader(), num_chains=3, seed=seed).blocks[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


# ------------------------------------------------------------------------------------------------------ bad luck


def test_divergence_keeps_the_draws_so_far() -> None:
    with pytest.warns(SamplingDivergedWarning, match=r"sampling diverged at step .* Lower the step size"):
        guide = quick(classifier(), loader(), kernel=SGLD(100.0), num_samples=5000, num_chains=2)
    assert 0 < guide.num_samples < 5000
    assert bool(guide.blocks[0].isfinite().all())


def test_divergence_before_the_first_draw_is_an_error() -> None:
    with pytest.raises(NonFiniteLossError, match="diverged before a draw was kept"):
        quick(classifier(), loader(), kernel=SGLD(100.0), warmup_steps=5000)


def test_ctrl_c_keeps_the_draws_so_far() -> None:
    class Impatient:
        dataset = range(24)

        def __iter__(self) -> Iterator[Any]:
            for _ in range(2):
                yield from loader()
            raise KeyboardInterrupt

    assert quick(classifier(), Impatient(), num_samples=100).num_samples == 6


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"kernel": SGLD}, TypeError, "kernel: expected one of pyrobnn.sampling.*make an instance"),
        ({"kernel": "sgld"}, TypeError, "kernel: expected one of pyrobnn.sampling"),
        ({"num_samples": 0}, ValueError, "num_samples: expected a positive int"),
        ({"thinning": 1.5}, ValueError, "thinning: expected a positive int"),
        ({"num_chains": True}, ValueError, "num_chains: expected a positive int"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps: expected an int of at least 0"),
        ({"vmap": "yes"}, ValueError, "vmap: expected True, False or 'auto'"),
        ({"resume": True}, ValueError, "resume: nothing to resume from"),
        ({"init": 3.0}, TypeError, "init: expected"),
        ({"data": [rows(8)]}, ValueError, "num_data: the model was built for 24 data"),
        ({"data": iter([rows()])}, TypeError, "data: a .*iterator is used up after one epoch"),
        ({"data": []}, ValueError, "data: the loader yielded no batch"),
        ({"data": [rows()[0]]}, TypeError, "expected batches"),
        ({"data": [rows(0), rows()]}, ValueError, "data: batch 0 has no rows"),
        ({"data": (torch.full((24, 3), float("nan")), rows()[1])}, ValueError, "x: batch 0 holds NaN"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        quick(classifier(), **{"num_samples": 30} | options)


@pytest.mark.parametrize("make", [lambda: rows(), lambda: loader(shuffle=False)])
def test_full_batch_kernels_take_both_kinds_of_data(make: Callable[[], Any]) -> None:
    seen: list[Any] = []

    class Still(FullBatchKernel):
        """Stays where it starts."""

        def run(self, model: Any, args: Any, **options: Any) -> ChainResult:
            seen.append((args, options))
            init = options["init"]
            return ChainResult(init.unsqueeze(1).repeat(1, 4, 1), {"energy": torch.zeros(len(init), 4)})

    guide = quick(classifier(), make(), kernel=Still(), num_samples=4, num_chains=2, init="prior")
    (args, options) = seen[0]
    assert torch.equal(args[0], rows()[0])
    assert torch.equal(args[1], rows()[1])
    assert (guide.num_chains, guide.num_samples) == (2, 4)
    assert torch.equal(guide.flat_draws(torch.tensor([0, 7])), options["init"])
    assert guide.stats["energy"].shape == (2, 4)
