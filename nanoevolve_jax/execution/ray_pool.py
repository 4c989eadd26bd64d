"""Pool of workers on a Ray cluster that train batches of jobs.

A worker is an actor that uses GPUs or CPU cores of its node. Each worker builds its own site, so
the packed rows stay on its node. A worker is refused if its facts (see `machine.Facts`) differ from
those of the first worker. An actor that does not fit on the cluster waits in Ray until a node
joins. This module needs the extra `ray`.
"""

import contextlib
import json
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nanoevolve_jax.data import CorpusError
from nanoevolve_jax.execution.engine import ClusterError, Progress
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.machine import Facts, differences
from nanoevolve_jax.execution.measurements import OutOfMemoryError
from nanoevolve_jax.execution.ray_connection import first_line, ray
from nanoevolve_jax.execution.results import LOST, Lost, RunResult
from nanoevolve_jax.execution.settings import ConfigError

MISTAKES = (ConfigError, CorpusError, OutOfMemoryError)
"""Errors that would occur on every worker."""


class Refusal(NamedTuple):
    """Reason why a node cannot train."""

    reason: str  # error message


class Worker:
    """Actor that trains batches of jobs on its node."""

    def __init__(self, make_site: Callable[[], Any]):
        self._make_site = make_site
        self._engines: dict[tuple[str, str], Any] = {}

    def join(self) -> tuple[str, Facts | Refusal]:
        """Builds the site of this worker.

        Returns:
          Tuple of the host name of the node and its facts, or the reason why it cannot train.
        """
        try:
            self._site = self._make_site()
        except MISTAKES as error:
            return socket.gethostname(), Refusal(str(error))
        return socket.gethostname(), self._site.facts

    def train(self, wanted: tuple[str, str], jobs: list[Job]) -> Iterator[Any]:
        """Trains one batch.

        Args:
          wanted: Config as JSON and name of the program, which select the engine.
          jobs: Jobs of one batch, at most one per lane.

        Yields:
          A `Progress` per segment and lines for the user. The last item is the list of results or
          an instance of one of `MISTAKES`.
        """
        if wanted not in self._engines:
            config, program = wanted
            self._engines[wanted] = self._site.engine(ConfigDict(json.loads(config)), program)
        items: queue.SimpleQueue = queue.SimpleQueue()
        engine = self._engines[wanted]._replace(log=items.put)
        threading.Thread(target=_train, args=(engine, jobs, items), daemon=True).start()
        # The last item is a list that holds either all results or a single error.
        while not isinstance(item := items.get(), list):
            yield item
        (first, *_) = item
        if isinstance(first, Exception) and not isinstance(first, MISTAKES):
            raise first
        yield first if isinstance(first, Exception) else item


def _train(engine: Any, jobs: list[Job], items: queue.SimpleQueue) -> None:
    try:
        items.put(list(engine.run(jobs, items.put)))
    except Exception as error:  # the driver decides whether to retry the batch
        items.put([error])


AUTOMATIC = -1  # value of config.ray.gpus that uses GPUs if the cluster has any
_TICK = 1.0  # longest wait in seconds for the next item of any worker
_STARTS = 3  # number of consecutive workers that may die while they start
_GRACE = 10.0  # time in seconds to wait for another node after a node was refused


class _Batch:
    """Jobs to train together, and the nodes on which an attempt failed."""

    def __init__(self, number: int, jobs: list[Job]):
        self.number, self.jobs = number, jobs
        self.failed_on: list[str] = []  # node of each failed attempt


class _Member:
    """Driver's record of one worker."""

    def __init__(self, actor: Any):
        self.actor = actor
        self.waiting_for: Any = actor.join.remote()  # later the stream of its batch
        self.node = ""  # host name of the node, set when the worker has joined
        self.joined = self.refused = False
        self.batch: _Batch | None = None
        self.last_item = time.monotonic()


class Pool(contextlib.AbstractContextManager):
    """Workers of one command. Close the pool before the connection to Ray ends."""

    def __init__(
        self,
        make_site: Callable[[], Any],
        settings: ConfigDict,
        *,
        cpus: int,
        gpus: int,
        log: Callable[[str], None],
    ):
        """Prepares the pool without starting a worker.

        Args:
          make_site: Function that builds the site of a worker. It is called in the worker's
            process.
          settings: Settings of the cluster, `config.ray`.
          cpus: Number of CPUs per worker.
          gpus: Number of GPUs per worker.
          log: Callback that takes one line for the user.
        """
        self._settings, self._log = settings, log
        self._actors = ray.remote(Worker).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD"
        )
        self._make_site = make_site
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._members: list[_Member] = []
        self._facts: Facts | None = None  # facts of the first worker, which all others must match
        self._refusals: dict[str, str] = {}  # reason for the refusal by node
        self._failed_starts = 0

    def __exit__(self, *error: object) -> None:
        """Drops all workers without calling Ray, which ends them when the connection closes."""
        self._members.clear()

    def facts(self) -> Facts:
        """Waits for the first worker and returns the facts that all workers share.

        Raises:
          ClusterError: If no worker can be used.
        """
        self._log("waiting for a worker; it prepares the text first")
        since = time.monotonic()
        while self._facts is None:
            self._hire(1)
            self._receive(deque(), {}, lambda progress: None)
            self._require_workers(since)
        return self._facts

    def train(
        self,
        wanted: tuple[str, str],
        batches: Sequence[list[Job]],
        on_progress: Callable[[Progress], None],
    ) -> Iterator[tuple[int, list[RunResult] | Lost] | None]:
        """Trains batches, with one batch per worker at a time.

        Close the generator before the pool. Workers that are still training when the generator is
        closed are killed.

        Args:
          wanted: Config as JSON and name of the program, which select the engines of the workers.
          batches: Batches of jobs. The jobs of a batch share a horizon and a fold.
          on_progress: Callback that takes the `Progress` of running batches.

        Yields:
          Tuple of the index of a batch and its results, or the reason why it was abandoned, in the
          order in which batches finish. None about once per second, so that the caller can check
          whether to stop.

        Raises:
          ClusterError: If no worker can be used.
        """
        waiting = deque(_Batch(number, jobs) for number, jobs in enumerate(batches))
        done: dict[int, list[RunResult] | Lost] = {}
        left, since = len(waiting), time.monotonic()
        try:
            while left:
                self._hire(left)
                self._assign(waiting, wanted)
                self._receive(waiting, done, on_progress)
                self._give_up_silent(waiting, done)
                if any(member.joined for member in self._members):
                    since = time.monotonic()
                self._require_workers(since)
                left -= len(done)
                yield from done.items()
                done.clear()
                yield None
        finally:  # after an interruption, some workers are still training
            for member in [m for m in self._members if m.batch is not None]:
                self._dismiss(member)

    def _hire(self, wanted: int) -> None:
        """Creates workers, at most one per batch. Workers that do not fit yet wait in Ray."""
        wanted = min(wanted, self._settings.workers or wanted)
        useful = sum(not member.refused for member in self._members)
        for _ in range(wanted - useful):
            self._members.append(_Member(self._actors.remote(self._make_site)))

    def _assign(self, waiting: deque, wanted: tuple[str, str]) -> None:
        """Assigns batches to idle workers, preferably on nodes where the batch has not failed."""
        idle = [m for m in self._members if m.joined and m.batch is None]
        while waiting and idle:
            batch = waiting.popleft()
            idle.sort(key=lambda member: batch.failed_on.count(member.node))
            member = idle.pop(0)
            stream = member.actor.train.options(num_returns="streaming")
            member.waiting_for = stream.remote(wanted, batch.jobs)
            member.batch, member.last_item = batch, time.monotonic()

    def _receive(self, waiting: deque, done: dict, on_progress) -> None:
        """Waits for up to one second for items from workers and handles them."""
        by_reference = {m.waiting_for: m for m in self._members if m.waiting_for is not None}
        if not by_reference:
            time.sleep(_TICK)
            return
        ready, _ = ray.wait(list(by_reference), timeout=_TICK)
        for reference in ready:
            member = by_reference[reference]
            member.last_item = time.monotonic()
            try:
                if member.batch is None:
                    self._admit(member, ray.get(reference))
                else:
                    self._take(member, ray.get(next(reference)), done, on_progress)
            except ray.exceptions.RayError as error:
                self._lose(member, first_line(error), waiting, done)

    def _admit(self, member: _Member, answer: tuple[str, Facts | Refusal]) -> None:
        """Accepts a worker if its facts match those of the first worker, otherwise refuses it."""
        member.waiting_for = None
        member.node, facts = answer
        self._failed_starts = 0
        if isinstance(facts, Facts) and self._facts is None:
            self._facts = facts
        if isinstance(facts, Facts):
            changed = differences(self._facts._asdict(), facts._asdict())
            reason = "; ".join(f"its {difference}" for difference in changed)
        else:
            reason = facts.reason
        member.joined, member.refused = not reason, bool(reason)
        if reason and member.node not in self._refusals:
            self._log(f"refused: node {member.node}: {reason}")
        if reason:
            # The refused worker keeps its resources, so that Ray does not start another one there.
            self._refusals[member.node] = reason

    def _take(self, member: _Member, item: Any, done: dict, on_progress) -> None:
        """Handles one item of a worker's stream."""
        batch = member.batch
        if isinstance(item, Progress):
            on_progress(item._replace(batch=batch.number))
        elif isinstance(item, str):
            self._log(f"node {member.node}: {item}")
        elif isinstance(item, MISTAKES):
            raise item  # the batch would fail on every worker
        else:
            done[batch.number] = item
            member.batch = member.waiting_for = None

    def _give_up_silent(self, waiting: deque, done: dict) -> None:
        limit = self._settings.silence_seconds
        for member in list(self._members):
            if member.batch is not None and time.monotonic() - member.last_item > limit:
                self._lose(member, f"it was silent for {limit} s", waiting, done)

    def _lose(self, member: _Member, reason: str, waiting: deque, done: dict) -> None:
        """Removes a dead worker and either retries or abandons its batch."""
        self._dismiss(member)
        batch = member.batch
        if batch is None:
            self._failed_starts += 1
            if self._failed_starts > _STARTS:
                raise ClusterError(f"workers die while they start: {reason}")
            self._log(f"a worker died while it started ({reason})")
            return
        batch.failed_on.append(member.node)
        again = len(batch.failed_on) < self._settings.attempts
        self._log(
            f"node {member.node}: lost a batch of {len(batch.jobs)} ({reason}); "
            + ("trying it again" if again else "giving it up")
        )
        if again:
            waiting.appendleft(batch)
        else:
            done[batch.number] = Lost(f"{LOST} {len(batch.failed_on)} times, at last: {reason}")

    def _dismiss(self, member: _Member) -> None:
        self._members.remove(member)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(member.actor, no_restart=True)

    def _room(self) -> int:
        """Returns the number of workers that fit on the nodes, minus the refused workers."""
        places = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            places += min(int(has.get(kind, 0) // n) for kind, n in self._needs.items() if n)
        return places - sum(member.refused for member in self._members)

    def _require_workers(self, since: float) -> None:
        """Checks that a worker has joined or may still join.

        Args:
          since: Value of `time.monotonic()` when a worker was last available.

        Raises:
          ClusterError: If no worker can be used.
        """
        if any(member.joined for member in self._members):
            return
        waited = time.monotonic() - since
        if self._refusals and waited > _GRACE and self._room() < 1:
            node, reason = next(iter(self._refusals.items()))
            raise ClusterError(
                f"no worker of config.ray.address={self._settings.address!r} can be used; "
                f"node {node}: {reason}"
            )
        if waited > self._settings.wait_seconds:
            raise ClusterError(
                f"no worker of config.ray.address={self._settings.address!r} started within "
                f"config.ray.wait_seconds={self._settings.wait_seconds}; a worker needs "
                f"{self._needs['CPU']} CPUs and {self._needs['GPU']} GPUs on one node"
            )
