"""What every command starts with: devices, packed rows, an engine, a calibration."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from nanoevolve_jax.data import files
from nanoevolve_jax.data.batches import check_horizon
from nanoevolve_jax.data.rows import Rows, build_rows
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence import attribution, transfer
from nanoevolve_jax.evidence.calibration_file import (
    UNCALIBRATED,
    Calibration,
    evaluation_facts,
    load_calibration,
)
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.evolution.run_folder import (
    holding,
    keep_calibration,
    open_folder,
    require_space,
)
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.checkpoint import FOLDER as CHECKPOINTS
from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.compile_check import CompileLimits
from nanoevolve_jax.execution.engine import Engine, LocalEngine, validation_sets
from nanoevolve_jax.execution.job import Job, Stream
from nanoevolve_jax.execution.machine import Facts, compute_threads, keep_programs, limit_threads
from nanoevolve_jax.execution.measurements import measured_lanes
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.execution.settings import (
    ConfigError,
    is_folder,
    make_baseline,
    make_recipe,
    make_task,
    with_recipe,
)
from nanoevolve_jax.execution.train import TELEMETRY, Candidate, Task
from nanoevolve_jax.stopping import graceful_stop
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import DataDisplay
from nanoevolve_jax.tracking.log import LOCAL_FOLDERS

PROGRAMS = (MAIN, attribution.SWITCH, attribution.WIDE, transfer.WIDER)


def use_devices(config: ConfigDict) -> int:
    """Settles threads, devices and where compiled programs are kept, before backends start."""
    if config.threads:
        limit_threads(config.threads)
    keep_programs(logging.warning)
    distributed = config.distributed == hosts.AUTO
    if distributed:
        hosts.join()
    else:
        jax.config.update("jax_num_cpu_devices", config.devices or compute_threads())
    found = len(jax.devices())
    if distributed and config.devices not in (0, found):
        rule = f"be 0 or {found}, the devices of all processes (JAX_NUM_CPU_DEVICES on CPUs)"
        raise ConfigError(must("config.devices", rule, config.devices))
    if config.devices > found:
        rule = f"be at most {found}, the number of devices here"
        raise ConfigError(must("config.devices", rule, config.devices))
    devices = config.devices or found
    if devices % config.data_parallel:
        rule = f"divide the number of devices, {devices}"
        raise ConfigError(must("config.data_parallel", rule, config.data_parallel))
    platform = jax.devices()[0].platform
    if config.model.attention == "cudnn" and platform != "gpu":
        raise ConfigError(must("config.model.attention", f"be xla on a {platform}", "cudnn"))
    return devices


def with_lanes(config: ConfigDict, devices: int, most: int) -> ConfigDict:
    """The config with a number of lanes, measured if it asks for that.

    Args:
      config: whole.
      devices: in all.
      most: jobs that are there to be run at once.
    """
    if config.lanes:
        return config
    chosen = config.copy_and_resolve_references()
    segment_steps = min(config.train.segment_steps, config.train.steps)
    lanes = 1
    if hosts.is_first():
        lanes = measured_lanes(make_task(config), segment_steps, -(-most // devices))
    chosen.lanes = int(hosts.votes(lanes)[0])
    return chosen


def with_own_folder(config: ConfigDict) -> ConfigDict:
    """The config with this process's own run folder, where several processes train together."""
    owned = config.copy_and_resolve_references()
    owned.workdir = str(hosts.own_folder(Path(config.workdir), but=(CHECKPOINTS, *LOCAL_FOLDERS)))
    return owned


def program_task(config: ConfigDict, program: str) -> Task:
    """The task of one of `PROGRAMS`: attribution and transfer need other static shapes."""
    task = make_task(transfer.wider(config) if program == transfer.WIDER else config)
    capacity = 2 if program == attribution.WIDE else 1
    return task._replace(batch_size=capacity * task.batch_size)


def make_engine(
    config: ConfigDict,
    rows: Rows,
    devices: int,
    *,
    program: str = MAIN,
    checkpoints: Checkpoints | None = None,
) -> LocalEngine:
    """An engine of a config over packed rows.

    Args:
      config: whole.
      rows: packed rows of the corpus.
      devices: in all.
      program: one of `PROGRAMS`.
      checkpoints: of the run folder, where it is to go on after a kill.
    """
    task = program_task(config, program)
    other_rows = None
    if program == attribution.SWITCH:
        other_rows = build_rows(
            config.attribute.switch_corpus,
            vocab_size=config.data.vocab_size,
            sequence_len=config.model.sequence_len,
            cache_dir=config.data.cache_dir,
            tokenizer=rows.tokenizer,
        ).train
    return LocalEngine(
        task=task,
        programs=make_programs(task, devices=devices, lanes=config.lanes),
        stream=Stream(rows.train, config.train.batch_size, config.data.vocab_size, other_rows),
        evaluation=validation_sets(
            rows.folds,
            config.data.validation_rows,
            config.train.batch_size,
            rows.token_bytes,
        ),
        segment_steps=min(config.train.segment_steps, config.train.steps),
        evaluations=config.train.evaluations,
        checkpoints=checkpoints,
        log=checkpoints.log if checkpoints else logging.warning,
        compile_limits=CompileLimits(seconds=5.0 * config.codegen.jail_seconds),
    )


def require_room(folder: Path, engine: Engine, config: ConfigDict, runs: int) -> None:
    """Refuses a disk that cannot hold the checkpoints and the telemetry of so many runs.

    Raises:
      ArchiveError: if it is too full.
    """
    candidate = Candidate(make_baseline(config), make_recipe(config))
    state = engine.checkpoint_bytes(Job(candidate, 0, config.train.steps))
    telemetry = runs * config.train.steps * len(TELEMETRY) * np.float32().nbytes
    # Two checkpoints are kept while a third one is written.
    require_space(folder, 3 * state + telemetry)


@contextlib.contextmanager
def opened(
    config: ConfigDict,
    description: dict[str, Any],
    log: Callable[[str], None],
    *,
    keep: bool = False,
) -> Iterator[Checkpoints]:
    """The run folder, held by this process alone, and its checkpoints.

    Ctrl-C and SIGTERM save a checkpoint and end the command.

    Args:
      config: whole.
      description: of the run; a folder of another run is refused.
      log: Callback that takes one line for the user.
      keep: whether a `config.json` that is there stays as it is.
    """
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


def load_rows(config: ConfigDict, console: Console, steps: int = 0) -> Rows:
    """Packed rows of the config's corpus, from the cache or built now.

    Args:
      config: whole.
      console: for progress.
      steps: longest horizon that must fit; 0: `train.steps`.
    """
    data = config.data
    with hosts.first_goes_first(), DataDisplay(console) as display:
        rows = build_rows(
            data.corpus,
            vocab_size=data.vocab_size,
            sequence_len=config.model.sequence_len,
            cache_dir=data.cache_dir,
            shards=data.shards,
            max_train_tokens=data.max_train_tokens,
            folds=data.folds,
            progress=display.on_progress,
        )
    if is_folder(data.corpus):
        folder = data.corpus.partition(":")[2]
        files.remember_corpus(data.cache_dir, rows.fingerprints["corpus"], folder)
    check_horizon(
        rows.train,
        steps=steps or config.train.steps,
        batch_size=config.train.batch_size,
        max_epochs=data.max_epochs,
    )
    sizes = [len(fold) for fold in rows.folds]
    console.print_line(
        f"{data.corpus}: {len(rows.train):,} training rows of {rows.sequence_len} tokens; "
        f"{sum(sizes):,} validation rows in {len(sizes)} folds"
    )
    return rows


def calibrated(config: ConfigDict, facts: Facts) -> tuple[ConfigDict, Calibration | None]:
    """The config under its calibration's recipe, and the calibration, if it names one."""
    if config.calibration == UNCALIBRATED:
        return config, None
    evaluation = evaluation_facts(config, facts)
    calibration = load_calibration(Path(config.calibration), evaluation)
    return with_recipe(config, calibration.recipe), calibration
