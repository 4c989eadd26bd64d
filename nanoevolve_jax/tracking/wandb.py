"""Runs of Weights & Biases: one for the search, and one for each tracked candidate."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanoevolve_jax.tracking.tracker import Point


class WeightsAndBiases:
    """A `Tracker` whose runs form a group named after the folder of their search.

    The id of a run is a hash of what decides the search, so a process that resumes a search resumes
    its runs. W&B drops steps that it already has. Its environment variables take precedence.
    """

    def __init__(self, folder: Path, project: str, origin: Any, config: dict[str, Any]):
        """Logs in unless W&B is offline.

        Args:
          folder: Run folder of the search.
          project: Project, unless WANDB_PROJECT is set.
          origin: Value that identifies the search.
          config: Config that W&B shows for each run.
        """
        import wandb

        self._wandb = wandb
        self._runs: dict[str, Any] = {}
        self._folder, self._origin, self._config = folder, origin, config
        self._project = os.environ.get("WANDB_PROJECT", project)
        if wandb.setup().settings.mode in ("online", "shared"):
            wandb.login()

    def scalars(self, run: str, points: Sequence[Point]) -> None:
        """See `Tracker`."""
        if run not in self._runs:
            self._runs[run] = self._begin(run)
        for step, values in points:
            self._runs[run].log(values, step=step)

    def end(self, run: str) -> None:
        """See `Tracker`."""
        self._runs.pop(run).finish()

    def close(self) -> None:
        """See `Tracker`."""
        for run in list(self._runs):
            self.end(run)

    def _begin(self, run: str):
        identity = repr((self._origin, self._folder.name, run)).encode()
        return self._wandb.init(
            project=self._project,
            group=os.environ.get("WANDB_RUN_GROUP", self._folder.name),
            name=run,
            id=hashlib.sha256(identity).hexdigest()[:16],
            dir=os.environ.get("WANDB_DIR", str(self._folder)),
            config=self._config,
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off"),
        )
