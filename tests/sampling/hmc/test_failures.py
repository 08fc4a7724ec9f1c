"""Chains that failed are named, with what helps; sound ones are not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from pyrobnn.sampling.hmc.failures import warn_of_failed_chains


def stats(num_chains: int = 4, num_samples: int = 50) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "lp": -11.0 + torch.randn(num_chains, num_samples, generator=generator),
        "diverging": torch.zeros(num_chains, num_samples, dtype=torch.bool),
        "step_size": torch.full((num_chains, num_samples), 0.5),
    }


def test_a_stuck_chain_is_named() -> None:
    found = stats()
    found["lp"][2] = -39387.0
    found["diverging"][2] = True
    with pytest.warns(
        UserWarning, match=r"HMC: chain 2 did not move.*log density -3.939e\+04, of the others -11"
    ) as seen:
        warn_of_failed_chains("HMC", found)
    assert len(seen) == 1  # its divergences are not told again
    for advice in ("longer warmup_steps", "init=", "Chains.from_draws", "smaller step_size"):
        assert advice in str(seen[0].message)


def test_all_chains_stuck() -> None:
    found = stats(num_chains=2)
    found["lp"][:] = -5.0
    with pytest.warns(UserWarning, match=r"NUTS: chains 0, 1 did not move.*\(log density -5\)"):
        warn_of_failed_chains("NUTS", found)


def test_a_chain_that_has_not_arrived_is_named() -> None:
    found = stats()
    found["lp"][1] -= 300.0
    found["step_size"][1] = 1e-3
    with pytest.warns(UserWarning, match=r"HMC: chain 1 had not reached .* of the others -11\.\d+\)\. Use a longer"):
        warn_of_failed_chains("HMC", found)


def test_divergences_of_sound_chains_are_told() -> None:
    found = stats()
    found["diverging"][3, :25] = True
    with pytest.warns(UserWarning, match="HMC: 50 % of the transitions of chain 3 diverged.*higher target_accept"):
        warn_of_failed_chains("HMC", found)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: None,
        lambda found: found["lp"][1].sub_(300.0),  # another mode, explored at the usual step size
        lambda found: found["step_size"][1].mul_(0.01),  # a narrow mode of the same density
        lambda found: found["step_size"].fill_(torch.nan),  # a kernel of Pyro that does not tell
        lambda found: found["lp"][1, ::2].copy_(found["lp"][1, 1::2]),  # every second proposal refused
    ],
)
def test_sound_chains_are_not_named(change: object) -> None:
    found = stats()
    change(found)  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_failed_chains("HMC", found)
        warn_of_failed_chains("HMC", {name: value[:1] for name, value in found.items()})
        warn_of_failed_chains("HMC", {name: value[:, :1] for name, value in found.items()})
