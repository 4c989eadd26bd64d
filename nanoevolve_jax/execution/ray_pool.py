"""Workers of a Ray cluster: starting them, checking that they agree, and training on them.

A worker is an actor with one accelerator, or with some cores. It builds its own site, so the rows
stay on its node. A worker whose facts (see `machine.Facts`) differ from the first worker's is
refused. Actors for which the cluster has no room wait in Ray until a node joins. Needs the extra
`ray`.
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

    reason: str


class Worker:
    """An actor with one accelerator, or some cores."""

    def __init__(self, make_site: Callable[[], Any]):
        self._make_site = make_site
        self._engines: dict[tuple[str, str], Any] = {}

    def join(self) -> tuple[str, Facts | Refusal]:
        """Builds the site; returns the name of the node and its facts, or why it has no site."""
        try:
            self._site = self._make_site()
        except MISTAKES as error:
            return socket.gethostname(), Refusal(str(error))
        return socket.gethostname(), self._site.facts

    def train(self, wanted: tuple[str, str], jobs: list[Job]) -> Iterator[Any]:
        """Trains one batch.

        Args:
          wanted: Config as JSON and name of the program, for the engine.
          jobs: Jobs of one batch, at most one per lane.

        Yields:
          A `Progress` per segment, lines for the user, and finally the list of results or one of
          `MISTAKES`.
        """
        if wanted not in self._engines:
            config, program = wanted
            self._engines[wanted] = self._site.engine(ConfigDict(json.loads(config)), program)
        items: queue.SimpleQueue = queue.SimpleQueue()
        engine = self._engines[wanted]._replace(log=items.put)
        threading.Thread(target=_train, args=(engine, jobs, items), daemon=True).start()
        # The last item is a list: of results, or of the one error that ended them.
        while not isinstance(item := items.get(), list):
            yield item
        (first, *_) = item
        if isinstance(first, Exception) and not isinstance(first, MISTAKES):
            raise first
        yield first if isinstance(first, Exception) else item


def _train(engine: Any, jobs: list[Job], items: queue.SimpleQueue) -> None:
    try:
        items.put(list(engine.run(jobs, items.put)))
    except Exception as error:  # the driver decides whether the batch is tried again
        items.put([error])


AUTOMATIC = -1  # config.ray.gpus: one if the cluster has any
_TICK = 1.0  # seconds between checks for workers that send nothing
_STARTS = 3  # workers in a row that may die while they start
_GRACE = 10.0  # seconds to wait for another node after one was refused


class _Batch:
    """Jobs to train together, and the nodes on which that failed."""

    def __init__(self, number: int, jobs: list[Job]):
        self.number, self.jobs = number, jobs
        self.failed_on: list[str] = []  # nodes


class _Member:
    """State of one worker in the driver."""

    def __init__(self, actor: Any):
        self.actor = actor
        self.waiting_for: Any = actor.join.remote()  # or the stream of its batch
        self.node = ""  # set when it has joined
        self.joined = self.refused = False
        self.batch: _Batch | None = None
        self.last_item = time.monotonic()


class Pool(contextlib.AbstractContextManager):
    """Workers of one command; close it before the connection ends."""

    def __init__(
        self,
        make_site: Callable[[], Any],
        settings: ConfigDict,
        *,
        cpus: int,
        gpus: int,
        log: Callable[[str], None],
    ):
        """Prepares the pool; the first worker starts when it is needed.

        Args:
          make_site: Function that builds the site of a worker, called in the worker's process.
          settings: `config.ray`.
          cpus: CPUs per worker.
          gpus: GPUs per worker.
          log: Callback that takes one line for the user.
        """
        self._settings, self._log = settings, log
        self._actors = ray.remote(Worker).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD"
        )
        self._make_site = make_site
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._members: list[_Member] = []
        self._facts: Facts | None = None  # facts of the first worker, which all others must share
        self._refusals: dict[str, str] = {}  # reason by node
        self._failed_starts = 0

    def __exit__(self, *error: object) -> None:
        """Drops all workers, which end with the connection; calls no function of Ray."""
        self._members.clear()

    def facts(self) -> Facts:
        """Returns the facts of the workers; waits for the first worker.

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
        """Trains batches, as many at once as there are workers.

        Workers that still train when the generator is closed are killed, so close it before the
        pool.

        Args:
          wanted: Config as JSON and name of the program, for the engines of the workers.
          batches: Batches of jobs that share a horizon and a fold.
          on_progress: Callback that takes the `Progress` of running batches.

        Yields:
          (number of a batch, its results or why it was given up) in the order in which batches
          end, and None about once a second, so that the caller can check for a stop.
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
        finally:  # these workers still train batches of an interrupted call
            for member in [m for m in self._members if m.batch is not None]:
                self._dismiss(member)

    def _hire(self, wanted: int) -> None:
        """Starts workers, at most one per batch; those without room wait in Ray."""
        wanted = min(wanted, self._settings.workers or wanted)
        useful = sum(not member.refused for member in self._members)
        for _ in range(wanted - useful):
            self._members.append(_Member(self._actors.remote(self._make_site)))

    def _assign(self, waiting: deque, wanted: tuple[str, str]) -> None:
        """Gives batches to idle workers, preferably on nodes where they have not failed."""
        idle = [m for m in self._members if m.joined and m.batch is None]
        while waiting and idle:
            batch = waiting.popleft()
            idle.sort(key=lambda member: batch.failed_on.count(member.node))
            member = idle.pop(0)
            stream = member.actor.train.options(num_returns="streaming")
            member.waiting_for = stream.remote(wanted, batch.jobs)
            member.batch, member.last_item = batch, time.monotonic()

    def _receive(self, waiting: deque, done: dict, on_progress) -> None:
        """Handles items that workers have sent; waits for up to a second."""
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
        """Accepts a worker whose facts agree, or refuses it."""
        member.waiting_for = None
        member.node, facts = answer
        self._failed_starts = 0
        if isinstance(facts, Facts) and self._facts is None:
            self._facts = facts
        if isinstance(facts, Facts):
            found = differences(self._facts._asdict(), facts._asdict())
            reason = "; ".join(f"its {difference}" for difference in found)
        else:
            reason = facts.reason
        member.joined, member.refused = not reason, bool(reason)
        if reason and member.node not in self._refusals:
            self._log(f"refused: node {member.node}: {reason}")
        if reason:
            # It keeps its resources, so that no other worker starts on this node.
            self._refusals[member.node] = reason

    def _take(self, member: _Member, item: Any, done: dict, on_progress) -> None:
        """Handles one item of a worker's stream."""
        batch = member.batch
        if isinstance(item, Progress):
            on_progress(item._replace(batch=batch.number))
        elif isinstance(item, str):
            self._log(f"node {member.node}: {item}")
        elif isinstance(item, MISTAKES):
            raise item  # it would fail on every worker
        else:
            done[batch.number] = item
            member.batch = member.waiting_for = None

    def _give_up_silent(self, waiting: deque, done: dict) -> None:
        limit = self._settings.silence_seconds
        for member in list(self._members):
            if member.batch is not None and time.monotonic() - member.last_item > limit:
                self._lose(member, f"it was silent for {limit} s", waiting, done)

    def _lose(self, member: _Member, reason: str, waiting: deque, done: dict) -> None:
        """Removes a dead worker; its batch is tried again or given up."""
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
        """Returns how many workers fit on the nodes, without those that were refused."""
        places = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            places += min(int(has.get(kind, 0) // n) for kind, n in self._needs.items() if n)
        return places - sum(member.refused for member in self._members)

    def _require_workers(self, since: float) -> None:
        """Checks that there is a worker, or that one may still come.

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
