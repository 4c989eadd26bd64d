"""Runs of MLflow: one for the search, one for every candidate whose curves are told."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanoevolve_jax.tracking.tracker import Point

_BATCH = 1000  # metrics that a store takes at once
_TAG = "nanoevolve.run"
# MLflow itself tries a server that is gone for four minutes, and a search would wait for it.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflow:
    """A `Tracker`; where runs are stored, MLFLOW_TRACKING_URI and MLflow's own default say.

    A process that goes on with a search goes on with its runs, and adds what the store lacks.
    """

    def __init__(self, folder: Path, project: str, origin: Any, config: dict[str, Any]):
        """Finds or makes the experiment.

        Args:
          folder: of the search.
          project: experiment, unless MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME says.
          origin: what decides the search, of any kind.
          config: parameters of each run, by dotted path.
        """
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # or it tells of its own tables
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
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _begin(self, run: str) -> str:
        """The id of the run that an earlier process began, or of a new one."""
        own = f"{self._origin}/{self._folder.name}/{run}"
        found = self._client.search_runs([self._experiment], f"tags.`{_TAG}` = '{own}'")
        if not found:
            tags = {_TAG: own, "search": self._folder.name}
            made = self._client.create_run(self._experiment, run_name=run, tags=tags)
            self._client.log_batch(made.info.run_id, params=self._params)
            self._known[run] = set()
            return made.info.run_id
        number = found[0].info.run_id
        self._client.update_run(number, status="RUNNING")
        self._known[run] = {
            (name, metric.step)
            for name in found[0].data.metrics
            for metric in self._client.get_metric_history(number, name)
        }
        return number
