"""MLflow."""

from __future__ import annotations

import re
import time
from typing import Any, Self

from pyrobnn.core.explanations import explained
from pyrobnn.core.extras import import_mlflow

__all__ = ["MLflowTracker"]

_REFUSED = re.compile(r"[^\w\-. /:]")


@explained
class MLflowTracker:
    """Metrics of a run of MLflow, by its client: no global active run is begun or ended.

    It is a context manager, which ends the run: ``FINISHED``, or ``FAILED`` after an error.

    Args:
        experiment: Name of the experiment; it is made if there is none.
        run_name: Name of the run; MLflow makes one up if None.
        tracking_uri: Where the records are, such as ``"sqlite:///runs.db"`` or a server; MLflow's setting if None.
        run_id: A run to go on with, instead of a new one.

    Attributes:
        client: The ``MlflowClient``.
        run_id: The run.

    Raises:
        ImportError: If ``mlflow`` is not installed.
    """

    def __init__(
        self,
        experiment: str = "Default",
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        run_id: str | None = None,
    ) -> None:
        for name, value in (("experiment", experiment), ("run_name", run_name), ("tracking_uri", tracking_uri)):
            if value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"{name}: expected a text, got {value!r}.")
        mlflow = import_mlflow("MLflowTracker")
        self._entities = mlflow.entities
        self.client: Any = mlflow.MlflowClient(tracking_uri=tracking_uri)
        if run_id is None:
            found = self.client.get_experiment_by_name(experiment)
            number = self.client.create_experiment(experiment) if found is None else found.experiment_id
            run_id = self.client.create_run(number, run_name=run_name).info.run_id
        self.run_id: str = run_id

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs all values in one request; characters that MLflow refuses in names become ``_``."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(_REFUSED.sub("_", name), value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self, status: str = "FINISHED") -> None:
        """Ends the run.

        Args:
            status: ``"FINISHED"``, ``"FAILED"`` or ``"KILLED"``.
        """
        self.client.set_terminated(self.run_id, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.close("FINISHED" if kind is None else "FAILED")
