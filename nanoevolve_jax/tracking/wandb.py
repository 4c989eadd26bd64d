"""Runs of Weights & Biases: one for the search, one for every candidate whose curves are told."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanoevolve_jax.tracking.tracker import Point


class WeightsAndBiases:
    """A `Tracker`; its runs are a group, named by their search's folder.

    A run is known by what decides the search, so a process that goes on with a search goes on with
    its runs, and W&B itself drops steps that it has. Its own environment variables go first.
    """

    def __init__(self, folder: Path, project: str, origin: Any, config: dict[str, Any]):
        """Logs in, if anything is to be sent.

        Args:
          folder: of the search.
          project: where runs go, unless WANDB_PROJECT says.
          origin: what decides the search, of any kind.
          config: what W&B shows as the config of each run.
        """
        import wandb

        self._wandb, self._runs = wandb, {}
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
