"""The calls of wandb's API, on a stand-in: the real one starts a service and writes to a home directory."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from pyrobnn.training import fit
from pyrobnn.training.trackers import WandbTracker
from tests.training.networks import loader, model_and_guide


class Run:
    """A run that keeps its calls; steps must not decrease, as in the real one."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.logged, self.finished = options, [], []  # type: ignore[var-annotated]

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        assert not self.logged or step >= self.logged[-1][0]
        self.logged.append((step, data))

    def finish(self, exit_code: int | None = None) -> None:
        self.finished.append(exit_code)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    made: list[Run] = []
    module = types.ModuleType("wandb")
    module.init = lambda **options: made.append(Run(options)) or made[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


def test_a_training_is_logged_to_one_run(runs: list[Run]) -> None:
    with WandbTracker("digits", mode="offline") as tracker:
        history = fit(*model_and_guide(), loader(), epochs=2, trackers=[tracker], log_every=1, progress=False)
    (run,) = runs
    assert run.options == {"project": "digits", "mode": "offline"}
    assert [values["elbo"] for _, values in run.logged if "elbo" in values] == history.elbo
    assert run.finished == [0]
    with pytest.raises(RuntimeError), WandbTracker():
        raise RuntimeError
    assert runs[1].finished == [1]


def test_a_run_is_a_tracker_by_itself(runs: list[Run]) -> None:
    import wandb

    run = wandb.init(project="mine")
    fit(*model_and_guide(), loader(), epochs=1, trackers=[run], progress=False)
    assert [step for step, _ in runs[0].logged] == [3]


def test_it_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"^WandbTracker: it needs the package wandb.*'pyrobnn\[trackers\]'"):
        WandbTracker()
    with pytest.raises(TypeError, match=r"^project: "):
        WandbTracker(3)  # type: ignore[arg-type]
