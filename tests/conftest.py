"""Every test starts from the same seeds and an empty Pyro parameter store; plots need no screen."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import pyro
import pytest
import torch
from hypothesis import settings

matplotlib.use("Agg")

# The same examples on every run and no deadline: a test must not fail because the machine is busy.
settings.register_profile("pyrobnn", derandomize=True, deadline=None)
settings.load_profile("pyrobnn")


@pytest.fixture(scope="session", autouse=True)
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests compile is kept apart from what the user compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYROBNN_CACHE", str(tmp_path_factory.mktemp("libraries")))
        yield


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    """Seeds of torch, NumPy and random; one thread, so that sums keep order; an empty store; Pyro's validation on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    with pyro.validation_enabled(True):  # restored also where a test switches it off
        yield
    pyro.clear_param_store()
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def leaves_settings(reproducible: None) -> Iterator[None]:
    """Each test leaves validation and gradient mode as it found them: the package restores what it switches."""
    before = _settings()
    yield
    assert _settings() == before


@pytest.fixture(params=[True, False], ids=["validated", "not validated"])
def validated(request: pytest.FixtureRequest) -> Iterator[bool]:
    """A test with Pyro's validation on, then off."""
    with pyro.validation_enabled(request.param):
        yield request.param


def _settings() -> dict[str, bool]:
    return {
        **{name: value for name, value in pyro.settings.get().items() if name.startswith("validate_")},
        "grad_enabled": torch.is_grad_enabled(),
        "inference_mode": torch.is_inference_mode_enabled(),
    }
