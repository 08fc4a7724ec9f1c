"""Metrics that are read back from a local store."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyrobnn.training.trackers import MLflowTracker

NAME = "log probability [nats]"


def test_metrics_can_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs the package mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    options = {"tracking_uri": (tmp_path / "store").as_uri()}
    with MLflowTracker("digits", run_name="first", **options) as tracker:
        for step in (3, 6):
            tracker.log({"elbo": -1.0 / step, NAME: 0.5}, step)
    found = tracker.client.get_metric_history(tracker.run_id, "elbo")
    assert [(metric.step, metric.value) for metric in found] == [(3, -1.0 / 3), (6, -1.0 / 6)]
    run = tracker.client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert set(run.data.metrics) == {"elbo", "log probability _nats_"}
    again = MLflowTracker("digits", run_id=tracker.run_id, **options)
    again.log({"elbo": 0.0}, 9)
    assert again.client.get_run(tracker.run_id).data.metrics["elbo"] == 0.0
    with pytest.raises(RuntimeError, match="stop"), MLflowTracker("digits", **options) as failed:
        raise RuntimeError("stop")
    assert failed.client.get_run(failed.run_id).info.status == "FAILED"


def test_it_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"^MLflowTracker: it needs the package mlflow.*'pyrobnn\[trackers\]'"):
        MLflowTracker()
    with pytest.raises(TypeError, match=r"^experiment: "):
        MLflowTracker("")
