"""Runs of MLflow: one for the search, and one for each tracked candidate."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanoevolve_jax.tracking.tracker import Point

_BATCH = 1000  # metrics that a store takes at once
_TAG = "nanoevolve.run"
# By default MLflow retries an unreachable server for four minutes, which would delay a search.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflow:
    """A `Tracker` that stores runs where MLFLOW_TRACKING_URI or MLflow's default points.

    A process that resumes a search resumes its runs, and adds the points that the store lacks.
    """

    def __init__(self, folder: Path, project: str, origin: Any, config: dict[str, Any]):
        """Finds or creates the experiment.

        Args:
          folder: Run folder of the search.
          project: Experiment, unless MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME is set.
          origin: Value that identifies the search.
          config: Parameters of each run by dotted path.
        """
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # skips its start-up notes
        self._client, self._metric = MlflowClient(), Metric
        self._params = [Param(name, str(value)) for name, value in config.items()]
        self._folder, self._origin = folder, origin
        self._experiment = self._find_experiment(project)
        self._runs: dict[str, str] = {}
        self._known: dict[str, set[tuple[str, int]]] = {}

    def scalars(self, run: str, points: Sequence[Point]) -> None:
        """See `Tracker`."""
        if run not in self._runs:
            self._runs[run] = self._begin(run)
        now, known = int(1000 * time.time()), self._known[run]
        metrics = [
            self._metric(name, value, now, step)
            for step, values in points
            for name, value in values.items()
            if (name, step) not in known
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._runs[run], metrics=metrics[start : start + _BATCH])

    def end(self, run: str) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._runs.pop(run))

    def close(self) -> None:
        """See `Tracker`."""
        for run in list(self._runs):
            self.end(run)

    def _find_experiment(self, project: str) -> str:
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", project)
        known = self._client.get_experiment_by_name(name)
        return known.experiment_id if known else self._client.create_experiment(name)

    def _begin(self, run: str) -> str:
        """Returns the id of the run that an earlier process started, or of a new one."""
        identity = f"{self._origin}/{self._folder.name}/{run}"
        known = self._client.search_runs([self._experiment], f"tags.`{_TAG}` = '{identity}'")
        if not known:
            tags = {_TAG: identity, "search": self._folder.name}
            run_info = self._client.create_run(self._experiment, run_name=run, tags=tags)
            self._client.log_batch(run_info.info.run_id, params=self._params)
            self._known[run] = set()
            return run_info.info.run_id
        number = known[0].info.run_id
        self._client.update_run(number, status="RUNNING")
        self._known[run] = {
            (name, metric.step)
            for name in known[0].data.metrics
            for metric in self._client.get_metric_history(number, name)
        }
        return number
