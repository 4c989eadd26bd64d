"""The loop of a campaign of code: ask, validate, train, settle.

Each proposal is processed by an asyncio task in a background thread. Up to `config.codegen.window`
proposals are under way at once. The main thread trains candidates and settles proposals in the
order of their numbers, so neither slow providers nor a killed process change the journal or the
lasting candidates of the archive.
"""

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import NamedTuple

from nanoevolve_jax.codegen.campaign import proposal
from nanoevolve_jax.codegen.campaign.proposal import Question, Result, Steps
from nanoevolve_jax.codegen.campaign.screening import Screening, entry_of, equal_of
from nanoevolve_jax.codegen.campaign.state import (
    State,
    Status,
    Target,
    best_of,
    draw_target,
    spent_on,
)
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators.budget import Limits, Spent, exceeded, total
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.proposals import Entry
from nanoevolve_jax.execution.checkpoint import Interrupted

_POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0
"""Time that calls under way get to end when the user asks to stop."""
OUTAGE = 6
"""Proposals in a row without an answer from any provider after which a campaign ends."""


class Plan(NamedTuple):
    """Functions and limits through which the controller uses providers and the sandbox."""

    question: Callable[[Target, State], Question]
    worst: Callable[[Question], Spent]  # upper bound on the cost of both tries of a proposal
    steps: Steps
    limits: Limits
    lost: Spent = Spent()  # upper bound on the cost of lost calls of earlier processes


class UnderWay(NamedTuple):
    """Proposal that has been started but not settled."""

    question: Question
    target: Target
    result: Future[Result]


class Controller:
    """Controller of a campaign of code in a run folder."""

    def __init__(
        self,
        screening: Screening,
        plan: Plan,
        *,
        stopping: Callable[[], bool],
        on_event: Callable[[Status, Entry | None], None],
    ):
        """Initializes the controller without starting a proposal.

        Args:
          screening: Training of candidates, with the config, run folder and engine.
          plan: Functions and limits for providers and the sandbox.
          stopping: Function that returns whether the user has asked to stop.
          on_event: Callback that takes the status of the campaign and the journal entry of the
            proposal that was just settled, or None.
        """
        self._screening, self._plan = screening, plan
        self._stopping, self._on_event = stopping, on_event
        self._config = screening.campaign.config
        self._rules = self._config.codegen
        self._folder: Path = screening.campaign.folder
        self._pending: deque[UnderWay] = deque()
        self._next: tuple[Question, Target] | None = None  # drafted but not started
        self._filled = 0  # mutants trained while waiting for the first pending proposal
        self._unanswered = 0  # consecutive proposals without an answer in this process
        self._ended: str | None = None

    def run(self, state: State) -> tuple[State, str]:
        """Runs the campaign to its end.

        Args:
          state: Settled state to continue from.

        Returns:
          Settled state at the end of the campaign, and the reason why it ended.

        Raises:
          Interrupted: If the user asked to stop.
          CodegenError: If the question of a proposal is damaged or from another campaign.
          CheckpointError: If the engine cannot use a checkpoint.
          ClusterError: If the engine cannot use the cluster.
          ConfigError: If the engine cannot use the config, or if the baseline fails.
        """
        if not state.records:
            state = self._screening.train_founders(state)
            self._report(state)
        with background_loop() as loop:
            while True:
                if self._stopping():
                    wait([each.result for each in self._pending], GRACE_SECONDS)
                    raise Interrupted
                self._start(state, loop)
                if not self._pending:
                    return state, self._ended or ""
                state = self._advance(state)

    # Starting

    def _start(self, state: State, loop: asyncio.AbstractEventLoop) -> None:
        """Starts proposals until the window is full or a limit or rule forbids another one."""
        while self._ended is None and len(self._pending) < self._rules.window:
            number = len(state.entries) + len(self._pending)
            known = self._known(number, state)
            self._ended = self._reason_to_end(number, known, state)
            if self._ended is not None:
                return
            question, target = self._next = self._next or self._draft(number, known)
            if (limit := self._exceeded(number, question, known, state)) is not None:
                if not self._pending:
                    self._ended = limit
                return
            folder = proposals.folder_of(self._folder, number)
            if proposal.read_question(folder) is None:
                proposal.write_question(folder, question, target)
            pursued = proposal.pursue(folder, question, self._plan.steps)
            future = asyncio.run_coroutine_threadsafe(pursued, loop)
            self._pending.append(UnderWay(question, target, future))
            self._next = None

    def _known(self, number: int, state: State) -> State:
        """Returns the state that a proposal may depend on, even if more is settled by now."""
        return state.before(max(0, number - self._rules.window + 1))

    def _reason_to_end(self, number: int, known: State, state: State) -> str | None:
        if self._unanswered >= max(OUTAGE, self._rules.window):
            return (
                f"no provider has answered {self._unanswered} proposals in a row, at last: "
                f"{state.entries[-1].message}; the same command tries again"
            )
        if number >= self._rules.proposals:
            return f"all {self._rules.proposals} proposals are made"
        patience = self._rules.plateau
        if patience and len(known.entries) >= patience:
            before = known.before(len(known.entries) - patience)
            if best_of(known).score <= best_of(before).score:
                return f"no better candidate in {patience} proposals"
        return None

    def _draft(self, number: int, known: State) -> tuple[Question, Target]:
        """Returns the question and target of a proposal, read from its folder if it has them."""
        folder = proposals.folder_of(self._folder, number)
        if (written := proposal.read_question(folder)) is None:
            target = draw_target(number, known, self._config)
            return self._plan.question(target, known), target
        target = written[1]
        if target.number != number or target.parent not in [r.id for r in known.records]:
            raise CodegenError(
                f"{folder / proposal.INPUTS} must be of proposal {number} and name a parent that "
                f"it may know of, got proposal {target.number} of {target.parent!r}"
            )
        return written

    def _exceeded(self, number: int, question: Question, known: State, state: State) -> str | None:
        """Returns the limit that a proposal might exceed, as a phrase, or None.

        While other proposals are under way, every proposal that is not part of `known` counts at
        its largest possible cost. Otherwise all proposals count at their actual cost. The result
        therefore does not depend on the order in which answers arrive.
        """
        worst, lost = self._plan.worst(question), self._plan.lost
        reserved = total(self._worst_of(n) for n in range(len(known.entries), number))
        spent = total([spent_on(known.entries), lost])
        limit = exceeded(self._plan.limits, spent, reserved, worst)
        if limit is not None and not self._pending:
            spent = total([spent_on(state.entries), lost])
            limit = exceeded(self._plan.limits, spent, Spent(), worst)
        return limit

    def _worst_of(self, number: int) -> Spent:
        """Returns an upper bound on the cost of a started proposal, settled or not."""
        folder = proposals.folder_of(self._folder, number)
        if (written := proposal.read_question(folder)) is None:
            raise CodegenError(f"{folder / proposal.INPUTS} is missing, and its proposal was made")
        return self._plan.worst(written[0])

    # Settling

    def _advance(self, state: State) -> State:
        """Settles the first pending proposal, or trains mutants until that proposal has ended."""
        head = self._pending[0]
        if head.result.done():
            return self._settle(head, state)
        if (left := self._rules.fill - self._filled) > 0:
            filled = self._screening.fill(state, left)
            self._filled += max(1, len(filled.records) - len(state.records))
            return filled
        wait([head.result], _POLL_SECONDS)
        self._report(state)
        return state

    def _settle(self, head: UnderWay, state: State) -> State:
        """Trains the candidate of a proposal, if it is new, and records the outcome."""
        target, provider, result = head.target, head.question.provider, head.result.result()
        entry = entry_of(target, provider, result)
        if result.certified is not None:
            candidate = self._screening.candidate(target, provider, result, state)
            equal = equal_of(candidate, state.lasting)
            if equal is not None:
                entry = entry._replace(outcome=proposals.SAME, candidate=equal.id)
            else:
                filler = equal_of(candidate, state.fillers)
                known = self._known(target.number, state)
                state = self._screening.train(candidate, target.number, known, state, filler)
                gain = state.record(candidate.id).score - state.record(target.parent).score
                gain = max(0.0, gain) if math.isfinite(gain) else 0.0
                entry = entry._replace(candidate=candidate.id, gain=gain)
        self._unanswered = self._unanswered + 1 if entry.outcome == proposals.FAILED else 0
        proposals.append(self._folder / proposals.FILE, entry)
        self._pending.popleft()
        self._filled = 0
        state = state._replace(entries=(*state.entries, entry))
        self._report(state, entry)
        return state

    def _report(self, state: State, entry: Entry | None = None) -> None:
        ready = sum(each.result.done() for each in self._pending)
        waiting = len(self._pending) - ready
        self._on_event(Status(state, self._rules.proposals, waiting, ready), entry)


@contextlib.contextmanager
def background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Runs an event loop in another thread and cancels its tasks at the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="proposals")
    thread.start()

    async def cancel() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(cancel(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
