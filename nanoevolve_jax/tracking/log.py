"""What a command tells its trackers while it runs."""

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
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.tracking import points
from nanoevolve_jax.tracking.fanout import Trackers
from nanoevolve_jax.tracking.mlflow import MLflow
from nanoevolve_jax.tracking.tensorboard import FOLDER, TensorBoard
from nanoevolve_jax.tracking.tracker import Tracker
from nanoevolve_jax.tracking.wandb import WeightsAndBiases

LOCAL_FOLDERS = (FOLDER, "wandb")  # of the run folder, in which trackers write
SEARCH = "search"  # the run that holds the search's own curves
_EXTRAS = ("wandb", "mlflow")


class Log:
    """Tells a tracker of a search from its beginning on, each thing once."""

    def __init__(
        self, tracker: Tracker, folder: Path, batch_tokens: float, log: Callable[[str], None]
    ):
        """Tells nothing yet.

        Args:
          tracker: whom.
          folder: of the run, where telemetry lies.
          batch_tokens: tokens a training step.
          log: Callback that takes one line for the user.
        """
        self._tracker, self._folder, self._log = tracker, folder, log
        self._batch_tokens = batch_tokens
        self._told = 0  # records
        self._candidates: set[str] = set()  # whose telemetry was told
        self._runs: collections.Counter[str] = collections.Counter()  # by stage

    def records(self, records: list[Record]) -> None:
        """Takes all records so far, as screening left them."""
        if len(records) > self._told:
            search = points.search_points(records, self._batch_tokens)
            self._tracker.scalars(SEARCH, search[self._told :])
            self._told = len(records)
        for name in points.leaders(records):
            self.candidate(name)

    def candidate(self, name: str) -> None:
        """Takes the id of a candidate whose telemetry is to be told whole."""
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
        """Takes a finished run of a stage after screening, or of a calibration."""
        self._runs[run.stage] += 1
        point = points.run_point(run, self._runs[run.stage])
        self._tracker.scalars(points.stage_name(run.stage), [point])


def require_installed(config: ConfigDict) -> None:
    """Refuses a tracker whose package is missing, before anything is prepared.

    Raises:
      ConfigError: naming it.
    """
    for name in _EXTRAS:
        spec = importlib.util.find_spec(name) if config.track[name] else None
        # A folder of that name, such as W&B leaves, is found too, but has no origin.
        if config.track[name] and (spec is None or spec.origin is None):
            raise ConfigError(
                f"config.track.{name}=True needs {name}, which is not installed; run "
                f"`pip install 'nanoevolve-jax[{name}]'`"
            )


@contextlib.contextmanager
def opened_log(
    config: ConfigDict, fingerprints: dict[str, str], console: Console, *, enabled: bool = True
) -> Iterator[Log]:
    """Opens the trackers of a run folder; of several processes, only the first has any.

    Args:
      config: Full configuration.
      fingerprints: Fingerprints of the run.
      console: Takes one line for each tracker that fails.
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
    trackers = Trackers(wanted, console.print_line)
    batch_tokens = config.train.batch_size * config.model.sequence_len
    try:
        yield Log(trackers, folder, batch_tokens, console.print_line)
    finally:
        trackers.close()
