"""Where candidates are trained: in this process, or on the workers of a Ray cluster."""

import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
from ml_collections import ConfigDict

from nanoevolve_jax.data.files import expanded
from nanoevolve_jax.data.rows import Rows
from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.engine import Engine
from nanoevolve_jax.execution.machine import Facts, gather_facts, visible_cores
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.prepare import (
    PROGRAMS,
    load_rows,
    make_engine,
    program_task,
    use_devices,
    with_lanes,
    with_own_folder,
)
from nanoevolve_jax.terminal.console import Console

RAY = "ray"


class Site(Protocol):
    """A place to train: this process, or the workers of a cluster."""

    @property
    def config(self) -> ConfigDict:
        """Config with its number of lanes settled."""
        ...

    @property
    def facts(self) -> Facts:
        """Facts of the place that results depend on."""
        ...

    def engine(
        self, config: ConfigDict, program: str, checkpoints: Checkpoints | None = None
    ) -> Engine:
        """The engine of a config and of one of `prepare.PROGRAMS`."""
        ...


class LocalSite(NamedTuple):
    """This process, its devices and its rows; a `Site`."""

    config: ConfigDict
    facts: Facts
    rows: Rows

    def engine(
        self, config: ConfigDict, program: str, checkpoints: Checkpoints | None = None
    ) -> Engine:
        """See `Site`."""
        devices = self.facts.device["devices"]
        return make_engine(config, self.rows, devices, program=program, checkpoints=checkpoints)


class RaySite(NamedTuple):
    """The workers of a Ray cluster; a `Site`."""

    config: ConfigDict
    facts: Facts
    pool: Any  # ray_pool.Pool, which exists only where Ray is installed

    def engine(
        self, config: ConfigDict, program: str, checkpoints: Checkpoints | None = None
    ) -> Engine:
        """See `Site`."""
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
    """Makers of the engines of all programs."""
    make = functools.partial(site.engine, config, checkpoints=checkpoints)
    return {name: functools.partial(make, name) for name in PROGRAMS}


def local_site(config: ConfigDict, console: Console, *, steps: int, most: int) -> LocalSite:
    """Settles devices, rows and lanes in this process.

    Args:
      config: whole.
      console: for progress of the data.
      steps: longest horizon that the text must last for.
      most: jobs that are there to be run at once.
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
    """The site that the config asks for; arguments as in `local_site`.

    Raises:
      ConfigError: if it asks for Ray, and that is not installed.
      ClusterError: if no worker can be used.
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
    jax.config.update("jax_platforms", "cpu")  # accelerators of this machine are its workers'
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
    """The config with absolute paths and a number of threads: workers start in other folders."""
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
    """The site of a worker's process; a config travels as JSON."""
    console = Console(file=io.StringIO())
    return local_site(ConfigDict(json.loads(config)), console, steps=steps, most=most)
