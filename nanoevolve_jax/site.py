"""Sites, which train candidates in this process or on the workers of a Ray cluster."""

import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from absl import logging
from ml_collections import ConfigDict

from nanoevolve_jax.data import files
from nanoevolve_jax.data.batches import check_horizon
from nanoevolve_jax.data.files import expanded
from nanoevolve_jax.data.rows import Rows, build_rows
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence import attribution, transfer
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.checkpoint import FOLDER as CHECKPOINTS
from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.compile_check import CompileLimits
from nanoevolve_jax.execution.engine import Engine, LocalEngine, validation_sets
from nanoevolve_jax.execution.job import Stream
from nanoevolve_jax.execution.machine import (
    Facts,
    compute_threads,
    gather_facts,
    keep_programs,
    limit_threads,
    visible_cores,
)
from nanoevolve_jax.execution.measurements import measured_lanes
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.execution.settings import ConfigError, is_folder, make_task
from nanoevolve_jax.execution.train import Task
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import DataDisplay
from nanoevolve_jax.tracking.log import LOCAL_FOLDERS

PROGRAMS = (MAIN, attribution.SWITCH, attribution.WIDE, transfer.WIDER)
RAY = "ray"


def use_devices(config: ConfigDict) -> int:
    """Sets up threads, devices and the cache of compiled programs.

    Call this function before JAX starts its backends.

    Args:
      config: Full configuration.

    Returns:
      Number of devices to use.

    Raises:
      ConfigError: If the config does not fit this machine.
    """
    if config.threads:
        limit_threads(config.threads)
    keep_programs(logging.warning)
    distributed = config.distributed == hosts.AUTO
    if distributed:
        hosts.join()
    else:
        jax.config.update("jax_num_cpu_devices", config.devices or compute_threads())
    available = len(jax.devices())
    if distributed and config.devices not in (0, available):
        rule = f"be 0 or {available}, the devices of all processes (JAX_NUM_CPU_DEVICES on CPUs)"
        raise ConfigError(must("config.devices", rule, config.devices))
    if config.devices > available:
        rule = f"be at most {available}, the number of devices here"
        raise ConfigError(must("config.devices", rule, config.devices))
    devices = config.devices or available
    if devices % config.data_parallel:
        rule = f"divide the number of devices, {devices}"
        raise ConfigError(must("config.data_parallel", rule, config.data_parallel))
    platform = jax.devices()[0].platform
    if config.model.attention == "cudnn" and platform != "gpu":
        raise ConfigError(must("config.model.attention", f"be xla on a {platform}", "cudnn"))
    return devices


def with_lanes(config: ConfigDict, devices: int, most: int) -> ConfigDict:
    """Returns the config with a fixed number of lanes, which is measured if the config has 0.

    Args:
      config: Full configuration.
      devices: Number of devices.
      most: Largest number of jobs that are ready to train at the same time.
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
    """Returns the config with a private run folder if several processes train together.

    The first process keeps the original folder, and each other process gets a copy.

    Args:
      config: Full configuration.
    """
    owned = config.copy_and_resolve_references()
    owned.workdir = str(hosts.own_folder(Path(config.workdir), but=(CHECKPOINTS, *LOCAL_FOLDERS)))
    return owned


def program_task(config: ConfigDict, program: str) -> Task:
    """Returns the static part of one of `PROGRAMS`.

    The programs of attribution and transfer may need other shapes than the main program.

    Args:
      config: Full configuration.
      program: One of `PROGRAMS`.
    """
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
    """Returns an engine that trains on the devices of this process.

    Args:
      config: Full configuration.
      rows: Packed rows of the corpus.
      devices: Number of devices.
      program: One of `PROGRAMS`.
      checkpoints: Checkpoints of the run folder, or None to train without checkpoints.
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


def load_rows(config: ConfigDict, console: Console, steps: int = 0) -> Rows:
    """Returns the packed rows of the config's corpus, which are built unless they are cached.

    Args:
      config: Full configuration.
      console: Console that shows the progress.
      steps: Longest horizon in steps, for which the text must suffice. 0 means `train.steps`.

    Raises:
      CorpusError: If the text cannot be used or is too short.
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


class Site(Protocol):
    """Interface of a site, which trains in this process or on the workers of a cluster."""

    @property
    def config(self) -> ConfigDict:
        """Full configuration, including the final number of lanes."""
        ...

    @property
    def facts(self) -> Facts:
        """Facts about the hardware, software and data on which results depend."""
        ...

    def engine(
        self, config: ConfigDict, program: str, checkpoints: Checkpoints | None = None
    ) -> Engine:
        """Returns an engine that trains with one of `PROGRAMS`.

        Args:
          config: Full configuration.
          program: One of `PROGRAMS`.
          checkpoints: Checkpoints of the run folder, or None to train without checkpoints.
        """
        ...


class LocalSite(NamedTuple):
    """A `Site` that uses the devices of this process."""

    config: ConfigDict  # full configuration, including the final number of lanes
    facts: Facts  # facts about this process
    rows: Rows  # packed rows of the corpus

    def engine(
        self, config: ConfigDict, program: str, checkpoints: Checkpoints | None = None
    ) -> Engine:
        """Returns a local engine. Implements `Site.engine`."""
        devices = self.facts.device["devices"]
        return make_engine(config, self.rows, devices, program=program, checkpoints=checkpoints)


class RaySite(NamedTuple):
    """A `Site` that uses the workers of a Ray cluster."""

    config: ConfigDict  # full configuration, including the final number of lanes
    facts: Facts  # facts that all workers share
    pool: Any  # instance of ray_pool.Pool, whose module is available only if Ray is installed

    def engine(
        self, config: ConfigDict, program: str, checkpoints: Checkpoints | None = None
    ) -> Engine:
        """Returns an engine that trains on the pool. Implements `Site.engine`."""
        from nanoevolve_jax.execution.ray_engine import RayEngine

        return RayEngine(
            task=program_task(config, program),
            pool=self.pool,
            wanted=(for_every_node(config, config.threads).to_json(), program),
            width=self.facts.width,
            checkpoints=checkpoints,
        )


def engines(
    site: Site, config: ConfigDict, checkpoints: Checkpoints | None = None
) -> dict[str, Callable[[], Engine]]:
    """Returns a function per program that makes its engine.

    Args:
      site: Site that trains.
      config: Full configuration.
      checkpoints: Checkpoints of the run folder, or None to train without checkpoints.
    """
    make = functools.partial(site.engine, config, checkpoints=checkpoints)
    return {name: functools.partial(make, name) for name in PROGRAMS}


def local_site(config: ConfigDict, console: Console, *, steps: int, most: int) -> LocalSite:
    """Prepares devices, rows and lanes in this process and returns its site.

    Args:
      config: Full configuration.
      console: Console that shows the progress of data preparation.
      steps: Longest horizon in steps, for which the text must suffice.
      most: Largest number of jobs that are ready to train at the same time.

    Raises:
      UserError: If the config does not fit this machine, or the text cannot be used.
    """
    devices = use_devices(config)
    rows = load_rows(config, console, steps)
    config = with_own_folder(with_lanes(config, devices, most))
    facts = gather_facts(rows.fingerprints, devices, config.lanes, config.data_parallel)
    return LocalSite(config, facts, rows)


@contextlib.contextmanager
def open_site(
    config: ConfigDict, console: Console, *, steps: int, most: int
) -> Iterator[LocalSite | RaySite]:
    """Opens the site that the config selects.

    Args:
      config: Full configuration.
      console: Console that shows the progress of data preparation.
      steps: Longest horizon in steps, for which the text must suffice.
      most: Largest number of jobs that are ready to train at the same time.

    Yields:
      Site, which is closed at the end of the block.

    Raises:
      ConfigError: If the config selects Ray and Ray is not installed.
      ClusterError: If no worker can be used.
      UserError: If the config does not fit this machine, or the text cannot be used.
    """
    if config.engine != RAY:
        yield local_site(config, console, steps=steps, most=most)
        return
    try:
        from nanoevolve_jax.execution import ray_connection, ray_pool
    except ImportError as error:
        raise ConfigError(
            f"config.engine='ray' needs Ray, which cannot be imported ({error}); run "
            "`pip install 'nanoevolve-jax[ray]'`"
        ) from None
    jax.config.update("jax_platforms", "cpu")  # leaves the accelerators to the workers
    with ray_connection.connected(config.ray.address) as resources:
        automatic = config.data_parallel if resources.get("GPU", 0) else 0
        gpus = automatic if config.ray.gpus == ray_pool.AUTOMATIC else config.ray.gpus
        shared = for_every_node(config, config.threads or (1 if gpus else visible_cores()))
        make = functools.partial(worker_site, shared.to_json(), steps=steps, most=most)
        with ray_pool.Pool(
            make, config.ray, cpus=shared.threads, gpus=gpus, log=console.print_line
        ) as pool:
            facts = pool.facts()
            settled = config.copy_and_resolve_references()
            settled.lanes = facts.lanes
            yield RaySite(settled, facts, pool)


def for_every_node(config: ConfigDict, threads: int) -> ConfigDict:
    """Returns a config for workers, with absolute paths and a fixed number of threads.

    Args:
      config: Full configuration.
      threads: Number of threads per worker.
    """
    shared = config.copy_and_resolve_references()
    shared.threads = threads
    shared.data.cache_dir = str(expanded(config.data.cache_dir).absolute())
    shared.data.corpus = _absolute(config.data.corpus)
    shared.attribute.switch_corpus = _absolute(config.attribute.switch_corpus)
    return shared


def _absolute(corpus: str) -> str:
    kind, colon, folder = corpus.partition(":")
    return f"{kind}:{expanded(folder).absolute()}" if colon else corpus


def worker_site(config: str, *, steps: int, most: int) -> LocalSite:
    """Returns the site of a worker's process.

    Args:
      config: Full configuration as JSON.
      steps: Longest horizon in steps, for which the text must suffice.
      most: Largest number of jobs that are ready to train at the same time.
    """
    console = Console(file=io.StringIO())
    return local_site(ConfigDict(json.loads(config)), console, steps=steps, most=most)
