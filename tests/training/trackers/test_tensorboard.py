"""Curves that are read back from the event files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyrobnn.training import fit
from pyrobnn.training.trackers import TensorBoardTracker
from tests.training.networks import loader, model_and_guide

pytest.importorskip("tensorboard", reason="needs the package tensorboard")


def test_the_curves_of_a_training_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardTracker(tmp_path / "run") as tracker:
        history = fit(*model_and_guide(), loader(), epochs=2, trackers=[tracker], log_every=1, progress=False)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    curve = events.Scalars("elbo")
    assert [event.step for event in curve] == [3, 6]
    assert [event.value for event in curve] == pytest.approx(history.elbo, rel=1e-6)
    assert [event.step for event in events.Scalars("step/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_directory_is_needed() -> None:
    with pytest.raises(ValueError, match=r"^directory: "):
        TensorBoardTracker("")
