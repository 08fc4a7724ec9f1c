"""Draws on disk: resumption bit for bit, budgets, other runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrobnn.core.schedules import PolynomialDecay
from pyrobnn.core.storage import load_state
from pyrobnn.sampling import (
    SGHMC,
    SGLD,
    SGNHT,
    Cyclical,
    PreconditionedSGLD,
)
from tests.sampling.models import classifier, loader, quick


@pytest.mark.parametrize(
    "kernel",
    [
        SGLD(PolynomialDecay(1e-3, 10.0)),
        PreconditionedSGLD(1e-3),
        SGHMC(1e-4),
        SGNHT(1e-4),
        Cyclical(SGHMC(1e-4), cycle_length=4),
    ],
    ids=lambda kernel: type(kernel).__name__,
)
def test_a_killed_run_is_continued_bit_for_bit(kernel: Any, tmp_path: Path) -> None:
    """Killed in the third pass over a shuffled loader; it loses one thinning interval at most."""
    options = {"kernel": kernel, "num_samples": 6, "warmup_steps": 3, "thinning": 2, "num_chains": 3, "seed": 8}
    expected = quick(classifier(), loader(), **options)
    whole = quick(classifier(), loader(), **options, directory=tmp_path / "whole")
    assert torch.equal(whole.blocks[0], expected.blocks[0])

    class Killed(Exception):
        pass

    class Fatal:
        """A loader that dies."""

        def __init__(self, batches: int) -> None:
            self.inner, self.left = loader(), batches
            self.dataset, self.sampler = self.inner.dataset, self.inner.sampler

        def __iter__(self) -> Iterator[Any]:
            for batch in self.inner:
                if self.left == 0:
                    raise Killed
                self.left -= 1
                yield batch

    with pytest.raises(Killed):
        quick(classifier(), Fatal(8), **options, directory=tmp_path / "run")
    assert load_state(tmp_path / "run")["run"]["step"] >= 8 - options["thinning"]
    torch.manual_seed(1234)  # a new process has another random state
    resumed = quick(classifier(), loader(), **options | {"seed": 99}, directory=tmp_path / "run", resume=True)
    assert torch.equal(resumed.blocks[0], expected.blocks[0])
    for name, value in expected.stats.items():
        assert torch.equal(resumed.stats[name], value)


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    expected = quick(classifier(), loader(), num_samples=7)
    quick(classifier(), loader(), num_samples=2, directory=tmp_path)
    longer = quick(classifier(), loader(), num_samples=7, directory=tmp_path, resume=True)
    assert torch.equal(longer.blocks[0], expected.blocks[0])
    again = quick(classifier(), loader(), num_samples=7, directory=tmp_path, resume=True)
    assert torch.equal(again.blocks[0], expected.blocks[0])


def test_draws_beyond_the_budget_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrobnn.sampling.sgmcmc.store._SHARD_BYTES", 2 * 2 * 31 * 4)
    model = classifier()
    expected = quick(model, num_samples=5, num_chains=2)
    guide = quick(model, num_samples=5, num_chains=2, directory=tmp_path, max_bytes=1)
    assert [len(block) for block in guide.blocks] == [2, 2, 1]
    assert len(list(tmp_path.glob("draws-*.safetensors"))) == 3
    for name, value in expected.by_chain().items():
        assert torch.equal(guide.by_chain()[name], value)
    with pytest.raises(ValueError, match=r"max_bytes: 5 draws of 2 chains.*directory="):
        quick(model, num_samples=5, num_chains=2, max_bytes=1)


def test_other_settings_are_not_resumed(tmp_path: Path) -> None:
    quick(classifier(), directory=tmp_path)
    with pytest.raises(ValueError, match=r"holds a run already; pass resume=True"):
        quick(classifier(), directory=tmp_path)
    for changed, name in (
        ({"kernel": SGLD(2e-3)}, "kernel"),
        ({"thinning": 2}, "thinning"),
        ({"num_chains": 2}, "num_chains"),
    ):
        with pytest.raises(ValueError, match=f"resume: the run in .* had {name} "):
            quick(classifier(), directory=tmp_path, resume=True, **changed)
