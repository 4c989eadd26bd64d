"""What runs in a worker's process: its own site, and batches of jobs on it."""

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nanoevolve_jax.data.errors import CorpusError
from nanoevolve_jax.execution.facts import Facts
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.memory import OutOfMemoryError
from nanoevolve_jax.execution.settings import ConfigError

MISTAKES = (ConfigError, CorpusError, OutOfMemoryError)
"""Errors that another worker would meet too."""


class Refusal(NamedTuple):
    """Why a node cannot train."""

    reason: str


class Worker:
    """An actor with one accelerator, or some cores."""

    def __init__(self, make_site: Callable[[], Any]):
        self._make_site = make_site
        self._engines: dict[tuple[str, str], Any] = {}

    def join(self) -> tuple[str, Facts | Refusal]:
        """Builds the site; (name of the node, what results depend on or why there is no site)."""
        try:
            self._site = self._make_site()
        except MISTAKES as error:
            return socket.gethostname(), Refusal(str(error))
        return socket.gethostname(), self._site.facts

    def train(self, wanted: tuple[str, str], jobs: list[Job]) -> Iterator[Any]:
        """Trains one batch.

        Args:
          wanted: config as JSON and program, of the engine.
          jobs: that fit into its lanes.

        Yields:
          a Progress a segment, text for the user, one of `MISTAKES`, at the end the results.
        """
        if wanted not in self._engines:
            config, program = wanted
            self._engines[wanted] = self._site.engine(ConfigDict(json.loads(config)), program)
        heard: queue.SimpleQueue = queue.SimpleQueue()
        engine = self._engines[wanted]._replace(log=heard.put)
        threading.Thread(target=_train, args=(engine, jobs, heard), daemon=True).start()
        # The last item is a list: of results, or of the one error that ended them.
        while not isinstance(item := heard.get(), list):
            yield item
        (first, *_) = item
        if isinstance(first, Exception) and not isinstance(first, MISTAKES):
            raise first
        yield first if isinstance(first, Exception) else item


def _train(engine: Any, jobs: list[Job], heard: queue.SimpleQueue) -> None:
    try:
        heard.put(list(engine.run(jobs, heard.put)))
    except Exception as error:  # whatever it is, the driver decides what becomes of the batch
        heard.put([error])
