"""The workers of a Ray cluster: who is there, who is refused, and what each one is training.

A worker is an actor with one accelerator. It builds its own site, so rows stay on its node, and
says what its results would depend on; one whose facts differ from the first worker's is refused.
Actors that find no room wait in Ray until a node joins. Needs the extra `ray`.
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

from nanoevolve_jax.data.errors import CorpusError
from nanoevolve_jax.execution.engine import ClusterError, Progress
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.machine import Facts, differences
from nanoevolve_jax.execution.measurements import OutOfMemoryError
from nanoevolve_jax.execution.ray_connection import first_line, ray
from nanoevolve_jax.execution.results import LOST, Lost, RunResult
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


AUTOMATIC = -1  # config.ray.gpus: one if the cluster has any
_TICK = 1.0  # seconds between looks at silent workers
_STARTS = 3  # workers that may die while starting, one after the other
_GRACE = 10.0  # seconds that a better node has to turn up after one was refused


class _Batch:
    """Jobs to train together, and where that went wrong."""

    def __init__(self, number: int, jobs: list[Job]):
        self.number, self.jobs = number, jobs
        self.failed_on: list[str] = []  # nodes


class _Member:
    """One worker as the driver sees it."""

    def __init__(self, actor: Any):
        self.actor = actor
        self.waiting_for: Any = actor.join.remote()  # or the stream of the batch in hand
        self.node = ""  # known when it has joined
        self.joined = self.refused = False
        self.batch: _Batch | None = None
        self.heard = time.monotonic()


class Pool(contextlib.AbstractContextManager):
    """The workers of one command; must be closed before the connection ends."""

    def __init__(
        self,
        make_site: Callable[[], Any],
        settings: ConfigDict,
        *,
        cpus: int,
        gpus: int,
        log: Callable[[str], None],
    ):
        """Starts nobody yet.

        Args:
          make_site: makes a worker's site, in its process.
          settings: `config.ray`.
          cpus: of every worker.
          gpus: of every worker.
          log: Callback that takes one line for the user.
        """
        self._settings, self._log = settings, log
        self._actors = ray.remote(Worker).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD"
        )
        self._make_site = make_site
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._members: list[_Member] = []
        self._facts: Facts | None = None  # of the first worker; all others must share them
        self._refusals: dict[str, str] = {}  # why, by node
        self._failed_starts = 0

    def __exit__(self, *error: object) -> None:
        """Gives up all workers, which end with the connection; calls nothing of Ray."""
        self._members.clear()

    def facts(self) -> Facts:
        """What the results of every worker depend on, once there is one.

        Raises:
          ClusterError: if no worker can be used.
        """
        self._log("waiting for a worker; it prepares the text first")
        since = time.monotonic()
        while self._facts is None:
            self._hire(1)
            self._listen(deque(), {}, lambda progress: None)
            self._require_workers(since)
        return self._facts

    def train(
        self,
        wanted: tuple[str, str],
        batches: Sequence[list[Job]],
        on_progress: Callable[[Progress], None],
    ) -> Iterator[tuple[int, list[RunResult] | Lost] | None]:
        """Trains batches, as many at once as there are workers.

        Args:
          wanted: config as JSON and program, of the engine that they need.
          batches: jobs that share a horizon and a fold.
          on_progress: hears of running batches.

        Workers that still train when the generator is closed are killed, so it must be closed
        before the pool is.

        Yields:
          (number of a batch, its results or why it was given up) in the order in which they end,
          and None about once a second, so that the caller can look up.
        """
        waiting = deque(_Batch(number, jobs) for number, jobs in enumerate(batches))
        done: dict[int, list[RunResult] | Lost] = {}
        left, since = len(waiting), time.monotonic()
        try:
            while left:
                self._hire(left)
                self._assign(waiting, wanted)
                self._listen(waiting, done, on_progress)
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
        """Asks for as many workers as there are batches; those without room wait in Ray."""
        wanted = min(wanted, self._settings.workers or wanted)
        useful = sum(not member.refused for member in self._members)
        for _ in range(wanted - useful):
            self._members.append(_Member(self._actors.remote(self._make_site)))

    def _assign(self, waiting: deque, wanted: tuple[str, str]) -> None:
        """Hands batches to idle workers, elsewhere than where they have failed if possible."""
        idle = [m for m in self._members if m.joined and m.batch is None]
        while waiting and idle:
            batch = waiting.popleft()
            idle.sort(key=lambda member: batch.failed_on.count(member.node))
            member = idle.pop(0)
            stream = member.actor.train.options(num_returns="streaming")
            member.waiting_for = stream.remote(wanted, batch.jobs)
            member.batch, member.heard = batch, time.monotonic()

    def _listen(self, waiting: deque, done: dict, on_progress) -> None:
        """Takes what workers have to say, for a second at most."""
        by_reference = {m.waiting_for: m for m in self._members if m.waiting_for is not None}
        if not by_reference:
            time.sleep(_TICK)
            return
        ready, _ = ray.wait(list(by_reference), timeout=_TICK)
        for reference in ready:
            member = by_reference[reference]
            member.heard = time.monotonic()
            try:
                if member.batch is None:
                    self._welcome(member, ray.get(reference))
                else:
                    self._take(member, ray.get(next(reference)), done, on_progress)
            except ray.exceptions.RayError as error:
                self._lose(member, first_line(error), waiting, done)

    def _welcome(self, member: _Member, answer: tuple[str, Facts | Refusal]) -> None:
        """Lets a worker in, or says why not."""
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
            # It keeps its place, so that no other worker starts where none can be used.
            self._refusals[member.node] = reason

    def _take(self, member: _Member, item: Any, done: dict, on_progress) -> None:
        """One item of a worker's stream."""
        batch = member.batch
        if isinstance(item, Progress):
            on_progress(item._replace(batch=batch.number))
        elif isinstance(item, str):
            self._log(f"node {member.node}: {item}")
        elif isinstance(item, MISTAKES):
            raise item  # whoever trains it, it cannot work
        else:
            done[batch.number] = item
            member.batch = member.waiting_for = None

    def _give_up_silent(self, waiting: deque, done: dict) -> None:
        limit = self._settings.silence_seconds
        for member in list(self._members):
            if member.batch is not None and time.monotonic() - member.heard > limit:
                self._lose(member, f"it was silent for {limit} s", waiting, done)

    def _lose(self, member: _Member, reason: str, waiting: deque, done: dict) -> None:
        """A worker is gone: its batch is tried elsewhere, or given up."""
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
        """How many more workers the nodes have room for, or are starting already."""
        places = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            places += min(int(has.get(kind, 0) // n) for kind, n in self._needs.items() if n)
        return places - sum(member.refused for member in self._members)

    def _require_workers(self, since: float) -> None:
        """Ends the command if nobody can work for it.

        Raises:
          ClusterError: saying why.
        """
        if any(member.joined for member in self._members):
            return
        waited = time.monotonic() - since
        if self._refusals and waited > _GRACE and self._room() < 1:
            node, reason = next(iter(self._refusals.items()))
            raise ClusterError(
                f"config.ray.address is {self._settings.address!r}, where no worker can be used; "
                f"node {node}: {reason}"
            )
        if waited > self._settings.wait_seconds:
            raise ClusterError(
                f"config.ray.address is {self._settings.address!r}, where no worker came within "
                f"config.ray.wait_seconds, {self._settings.wait_seconds}; allowed: a cluster with "
                f"{self._needs['CPU']} CPUs and {self._needs['GPU']} GPUs free"
            )
