"""Context of a command that trains: its site, run folder, trackers and display.

Such a command consists of its flags and one `with open_run(...) as run:` block.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.calibration_file import (
    UNCALIBRATED,
    Calibration,
    evaluation_facts,
    load_calibration,
)
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.campaign import summarise
from nanoevolve_jax.evolution.run_folder import (
    describe_run,
    holding,
    keep_calibration,
    open_folder,
    require_free,
    require_space,
)
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.engine import Engine
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.execution.machine import Facts
from nanoevolve_jax.execution.measurements import compilations, start_counting
from nanoevolve_jax.execution.settings import make_baseline, make_recipe, with_recipe
from nanoevolve_jax.execution.train import TELEMETRY, Candidate
from nanoevolve_jax.reporting.page import write_at_end
from nanoevolve_jax.site import Site, engines, open_site
from nanoevolve_jax.stopping import graceful_stop
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import (
    Display,
    baseline_curve,
    results_table,
    where_things_lie,
)
from nanoevolve_jax.tracking.log import Log, opened_log, require_installed

SUMMARY = "summary.json"


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """Resources of a command that trains.

    Attributes:
      config: Full configuration, including the final number of lanes and the calibrated recipe.
      site: Place where candidates are trained.
      calibration: Calibration that the config names, or None if it does not name one.
      description: Content of `config.json`, as returned by `describe_run`.
      checkpoints: Checkpoints of the run folder.
      tracking: Log that reports to the trackers.
      display: Progress display on the terminal. The command sets the expected number of steps.
      console: Console of the command.
      started: Value of `time.monotonic()` when the run was opened.
      compiled_before: Number of compilations per program when the run was opened.
    """

    config: ConfigDict
    site: Site
    calibration: Calibration | None
    description: dict[str, Any]
    checkpoints: Checkpoints
    tracking: Log
    display: Display
    console: Console
    started: float
    compiled_before: Mapping[str, int]

    @property
    def folder(self) -> Path:
        """Path of the run folder."""
        return Path(self.config.workdir)

    @property
    def batch_tokens(self) -> int:
        """Number of tokens per training step."""
        return self.config.train.batch_size * self.config.model.sequence_len

    @property
    def scale(self) -> Scale:
        """Scale of scores. Without a calibration, it has sigma 1 and the config's cost weight."""
        if self.calibration:
            return self.calibration.scale
        return Scale(1.0, 0.0, self.config.search.cost_weight)

    @property
    def against(self) -> str:
        """Phrase that names the baseline with which candidates are compared."""
        return "the tuned baseline" if self.calibration else "an untuned baseline"

    @functools.cached_property
    def engine(self) -> Engine:
        """Engine of the main program."""
        return self.site.engine(self.config, MAIN, self.checkpoints)

    def runs(self, engine: Engine | None = None) -> Runs:
        """Opens `runs.jsonl` of the run folder.

        Runs are displayed on the terminal and reported to trackers.

        Args:
          engine: Engine of the main program. The default is `self.engine`.

        Raises:
          EvidenceError: If a complete line of `runs.jsonl` was changed.
        """
        makers = engines(self.site, self.config, self.checkpoints)
        makers[MAIN] = lambda: engine or self.engine
        return Runs(
            self.folder,
            makers,
            self.display.on_progress,
            self.display.log,
            on_event=(self.display.on_run, self.tracking.run),
        )

    def require_room(self, runs: int, engine: Engine | None = None) -> None:
        """Checks that the disk has enough free space for checkpoints and telemetry.

        Args:
          runs: Number of runs that are still to be trained.
          engine: Engine that trains the runs. The default is `self.engine`.

        Raises:
          ArchiveError: If there is too little space.
        """
        candidate = Candidate(make_baseline(self.config), make_recipe(self.config))
        state = (engine or self.engine).checkpoint_bytes(Job(candidate, 0, self.config.train.steps))
        telemetry = runs * self.config.train.steps * len(TELEMETRY) * np.float32().nbytes
        # Two checkpoints are kept while a third is written.
        require_space(self.folder, 3 * state + telemetry)

    def seconds(self) -> float:
        """Returns the wall-clock time in seconds since the run was opened."""
        return time.monotonic() - self.started

    def write_summary(
        self, records: list[Record], extra: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Writes `summary.json` and returns its contents.

        The numbers of compilations and the wall time cover only this process. All other fields
        follow from the records, so they do not depend on how often the search was stopped.

        Args:
          records: All records of the search.
          extra: Additional fields of the summary.
        """
        now = compilations()
        summary = {
            **summarise(records, self.batch_tokens),
            "compared_with": self.against,
            **(extra or {}),
            "xla_compilations": {name: now[name] - self.compiled_before[name] for name in now},
            "wall_seconds": round(self.seconds(), 1),
        }
        write_json(self.folder / SUMMARY, summary)
        return summary


@contextlib.contextmanager
def open_run(
    config: ConfigDict,
    console: Console,
    task: str,
    *,
    steps: int,
    most: int,
    tracked: bool = True,
    as_written: Callable[[ConfigDict], ConfigDict] | None = None,
) -> Iterator[OpenRun]:
    """Opens all resources of a command that trains, and closes them at the end of the block.

    Within the block, Ctrl-C and SIGTERM save a checkpoint and end the command.

    Args:
      config: Full configuration.
      console: Console of the command.
      task: One word that describes the command in the display, such as `confirm`.
      steps: Longest horizon in steps, for which the text must suffice.
      most: Largest number of jobs that are ready to train at the same time.
      tracked: Whether the run is reported to trackers.
      as_written: Function that takes the config and returns the config to record in `config.json`.
        If it is given, an existing `config.json` is kept.

    Yields:
      Resources of the run.

    Raises:
      UserError: If the config, the folder, the text or the calibration cannot be used.
    """
    started = time.monotonic()
    require_free(Path(config.workdir))
    if tracked:
        require_installed(config)
    start_counting()
    compiled_before = compilations()
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(open_site(config, console, steps=steps, most=most))
        config, calibration = _calibrated(site.config, site.facts)
        seal = calibration.seal if calibration else UNCALIBRATED
        written = as_written(config) if as_written else config
        description = describe_run(written, site.facts, seal)
        keep = as_written is not None
        held = _open_folder(config, description, console.print_line, keep=keep)
        checkpoints = stack.enter_context(held)
        tracking = stack.enter_context(
            opened_log(config, description["fingerprints"], console.print_line, enabled=tracked)
        )
        batch_tokens = config.train.batch_size * config.model.sequence_len
        display = stack.enter_context(
            Display(console, total_steps=0, batch_tokens=batch_tokens, task=task)
        )
        yield OpenRun(
            config,
            site,
            calibration,
            description,
            checkpoints,
            tracking,
            display,
            console,
            started,
            compiled_before,
        )


@contextlib.contextmanager
def _open_folder(
    config: ConfigDict,
    description: dict[str, Any],
    log: Callable[[str], None],
    *,
    keep: bool,
) -> Iterator[Checkpoints]:
    """Locks the run folder and yields its checkpoints."""
    folder = Path(config.workdir)
    with holding(folder), graceful_stop(log) as stopping:
        open_folder(folder, description, keep=keep)
        if config.calibration != UNCALIBRATED:
            keep_calibration(folder, Path(config.calibration))
        checkpoints = Checkpoints(
            folder, seconds=config.checkpoint_seconds, stopping=stopping, log=log
        )
        try:
            yield checkpoints
        finally:
            checkpoints.close()


def _calibrated(config: ConfigDict, facts: Facts) -> tuple[ConfigDict, Calibration | None]:
    """Returns the config with the calibrated recipe, and the calibration, if any."""
    if config.calibration == UNCALIBRATED:
        return config, None
    evaluation = evaluation_facts(config, facts)
    calibration = load_calibration(Path(config.calibration), evaluation)
    return with_recipe(config, calibration.recipe), calibration


def show_results(run: OpenRun, records: list[Record], *more: str) -> None:
    """Prints the best candidates of a finished search and writes its report.

    Args:
      run: Resources of the search, already closed.
      records: All records of the search.
      *more: Additional lines to print at the end.
    """
    run.console.page(results_table(records, count=5, against=run.against))
    run.console.print_line(f"baseline validation bpb: {baseline_curve(run.folder)}")
    if hosts.is_first():
        write_at_end(run.folder, run.console.print_line)
    for line in (*where_things_lie(run.folder), *more):
        run.console.print_line(line)
