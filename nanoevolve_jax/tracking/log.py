"""Reports of a command to its trackers while it runs."""

import collections
import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.evidence.trajectories import SCREENED, read_telemetry
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.settings import ConfigError, get_setting
from nanoevolve_jax.tracking import points
from nanoevolve_jax.tracking.fanout import Trackers
from nanoevolve_jax.tracking.mlflow import MLflow
from nanoevolve_jax.tracking.tensorboard import FOLDER, TensorBoard
from nanoevolve_jax.tracking.tracker import Tracker
from nanoevolve_jax.tracking.wandb import WeightsAndBiases

LOCAL_FOLDERS = (FOLDER, "wandb")  # folders of trackers in the run folder
SEARCH = "search"  # name of the run with the curves of the whole search
_EXTRAS = ("wandb", "mlflow")


class Log:
    """Reports a search to a tracker from its beginning on, each point once."""

    def __init__(
        self, tracker: Tracker, folder: Path, batch_tokens: float, log: Callable[[str], None]
    ):
        """Starts with nothing reported.

        Args:
          tracker: Tracker that receives the points.
          folder: Run folder with the telemetry.
          batch_tokens: Tokens per training step.
          log: Callback that takes one line for the user.
        """
        self._tracker, self._folder, self._log = tracker, folder, log
        self._batch_tokens = batch_tokens
        self._reported = 0  # number of records
        self._candidates: set[str] = set()  # ids whose telemetry is reported
        self._runs: collections.Counter[str] = collections.Counter()  # number of runs by stage

    def records(self, records: list[Record]) -> None:
        """Reports new records.

        Args:
          records: All records so far, as they were after screening.
        """
        if len(records) > self._reported:
            search = points.search_points(records, self._batch_tokens)
            self._tracker.scalars(SEARCH, search[self._reported :])
            self._reported = len(records)
        for name in points.leaders(records):
            self.candidate(name)

    def candidate(self, name: str) -> None:
        """Reports the whole telemetry of a candidate."""
        if name in self._candidates:
            return
        self._candidates.add(name)
        try:
            columns = read_telemetry(self._folder, name, SCREENED)
        except EvidenceError as error:
            return self._log(f"{error}; its curves are not tracked")
        if columns is not None:
            self._tracker.scalars(name, points.telemetry_points(columns))
            self._tracker.end(name)

    def run(self, run: Run) -> None:
        """Reports a finished run of a calibration or of a stage after screening."""
        self._runs[run.stage] += 1
        point = points.run_point(run, self._runs[run.stage])
        self._tracker.scalars(points.stage_name(run.stage), [point])


def require_installed(config: ConfigDict) -> None:
    """Refuses a tracker whose package is missing, before anything is prepared.

    Raises:
      ConfigError: if a package is missing.
    """
    for name in _EXTRAS:
        spec = importlib.util.find_spec(name) if config.track[name] else None
        # A folder of that name, such as W&B creates, is found too, but has no origin.
        if config.track[name] and (spec is None or spec.origin is None):
            raise ConfigError(
                f"config.track.{name}=True needs {name}, which is not installed; run "
                f"`pip install 'nanoevolve-jax[{name}]'`"
            )


@contextlib.contextmanager
def opened_log(
    config: ConfigDict,
    fingerprints: dict[str, str],
    log: Callable[[str], None],
    *,
    enabled: bool = True,
) -> Iterator[Log]:
    """Opens the trackers of a run folder; of several processes, only the first has any.

    Args:
      config: Full configuration.
      fingerprints: Fingerprints of the run.
      log: Callback that takes one line for the user.
      enabled: Whether there are trackers at all.
    """
    folder, track = Path(config.workdir), config.track
    values = {path: get_setting(config, path) for path in SETTINGS}
    shared = (folder, track.project, fingerprints["config"], values)
    makers = {
        "tensorboard": functools.partial(TensorBoard, folder),
        "wandb": functools.partial(WeightsAndBiases, *shared),
        "mlflow": functools.partial(MLflow, *shared),
    }
    wanted = {name: make for name, make in makers.items() if enabled and track[name]}
    if not hosts.is_first():
        wanted = {}
    trackers = Trackers(wanted, log)
    batch_tokens = config.train.batch_size * config.model.sequence_len
    try:
        yield Log(trackers, folder, batch_tokens, log)
    finally:
        trackers.close()
