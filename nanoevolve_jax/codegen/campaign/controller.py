"""The loop of a campaign of code: aim, ask, validate, train, keep; again.

Proposals are pursued in threads, a window of them at once, each a chain of child processes; this
thread trains whatever is certified. What a proposal aims at depends on proposals a window before it
and no others, and books and archive are written in the order of the numbers. So neither slow
providers nor kills change what is in them.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nanoevolve_jax.codegen.campaign import pipeline
from nanoevolve_jax.codegen.campaign.islands import Aim, Rules
from nanoevolve_jax.codegen.campaign.islands import aim as aim_of
from nanoevolve_jax.codegen.campaign.pipeline import Brief, Proposed, Steps
from nanoevolve_jax.codegen.campaign.records import entry_of
from nanoevolve_jax.codegen.campaign.screening import Screening, Trained, equal_of
from nanoevolve_jax.codegen.campaign.state import State, Status, best_of, spent_on, status_of
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators.budget import Limits, Spent, allows, total
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.campaign import identity
from nanoevolve_jax.evolution.proposals import Entry
from nanoevolve_jax.evolution.tournament import Proposal
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.policy.slots import SCOPES, SLOTS

_POLL_SECONDS = 0.1
OUTAGE = 6
"""Proposals in a row without any answer, of all providers, after which nobody is asked any more."""
THREAD = "proposal"  # name of those that pursue one


class Plan(NamedTuple):
    """What the controller needs of the world of providers."""

    brief: Callable[[Aim, State], Brief]
    worst: Callable[[Brief], Spent]  # of a whole proposal, both its tries
    steps: Steps
    limits: Limits


class UnderWay(NamedTuple):
    """A proposal that was started and is not settled."""

    brief: Brief
    aim: Aim
    future: Future[Proposed]


class Controller:
    """One campaign of code on one run folder."""

    def __init__(
        self,
        screening: Screening,
        plan: Plan,
        *,
        stopping: Callable[[], bool],
        on_event: Callable[[Status, Entry | None, Sequence[Record]], None],
    ):
        """Starts nothing yet.

        Args:
          screening: config, folder, engine.
          plan: prompts, providers, the jail.
          stopping: whether someone has asked to stop.
          on_event: Callback that takes the status, a proposal if one was settled, and the records.
        """
        self._screening, self._plan = screening, plan
        self._stopping, self._on_event = stopping, on_event
        self._config: ConfigDict = screening.campaign.config
        self._rules = self._config.codegen
        self._folder: Path = screening.campaign.folder
        self._drafts: dict[int, tuple[Brief, Aim]] = {}
        self._under_way: dict[int, UnderWay] = {}
        self._trained: dict[int, Trained] = {}
        self._filled: dict[int, int] = {}  # mutants, by the proposal that was waited for
        self._unanswered = 0  # proposals in a row; a new start tries again
        self._ended: str | None = None

    def run(self, state: State) -> tuple[State, str]:
        """Runs the campaign until it ends; gives what is settled and why it ended.

        Raises:
          Interrupted: if someone asked to stop; calls under way go on, and are found again.
          CodegenError: if what a proposal asks is damaged, or not a question of this campaign.
          CheckpointError, ClusterError, ConfigError: see `Screening` and the engine.
        """
        if not state.records:
            state = self._screening.found(state)
            self._tell(state)
        while True:
            if self._stopping():
                raise Interrupted
            self._start(state)
            if not self._under_way:
                return state, self._ended
            state = self._step(state)

    # Starting

    def _start(self, state: State) -> None:
        """Starts the proposals that may be started now."""
        while self._ended is None and len(self._under_way) < self._rules.window:
            number = len(state.entries) + len(self._under_way)
            if self._unanswered >= max(OUTAGE, self._rules.window):
                self._ended = (
                    f"no provider has answered {self._unanswered} proposals in a row, at last: "
                    f"{state.entries[-1].message}; the same command tries again"
                )
                return
            if number >= self._rules.proposals:
                self._ended = f"all {self._rules.proposals} proposals are made"
                return
            known = self._known(number, state)
            if self._is_plateau(known):
                self._ended = f"no better candidate in {self._rules.plateau} proposals"
                return
            brief, aim = self._draft(number, known)
            if (words := self._forbids(number, brief, known, state)) is not None:
                if not self._under_way:
                    self._ended = words
                return
            folder = proposals.folder_of(self._folder, number)
            if pipeline.read_brief(folder) is None:
                pipeline.write_brief(folder, brief, aim._asdict())
            future = in_thread(pipeline.pursue, folder, brief, self._plan.steps)
            self._under_way[number] = UnderWay(brief, aim, future)

    def _known(self, number: int, state: State) -> State:
        """What a proposal may know of, whatever else is settled by now."""
        return state.before(max(0, number - self._rules.window + 1))

    def _is_plateau(self, known: State) -> bool:
        """Whether the last proposals that are known brought nothing better."""
        patience = self._rules.plateau
        if not patience or len(known.entries) < patience:
            return False
        before = known.before(len(known.entries) - patience)
        return best_of(known).score <= best_of(before).score

    def _draft(self, number: int, known: State) -> tuple[Brief, Aim]:
        """What a proposal asks; the first answer to that question stands for ever."""
        if number not in self._drafts:
            folder = proposals.folder_of(self._folder, number)
            if (kept := pipeline.read_brief(folder)) is None:
                aim = aim_of(number, known, rules_of(self._config))
                self._drafts[number] = self._plan.brief(aim, known), aim
            else:
                brief, found = kept
                aim = Aim(*(found[name] for name in Aim._fields))
                aim = aim._replace(shown=tuple(aim.shown))
                if aim.number != number or aim.parent not in [r.id for r in known.records]:
                    raise CodegenError(
                        f"{folder / pipeline.INPUTS} must be of proposal {number} and name a "
                        f"parent that it may know of, got proposal {aim.number} of {aim.parent!r}"
                    )
                self._drafts[number] = brief, aim
        return self._drafts[number]

    def _forbids(self, number: int, brief: Brief, known: State, state: State) -> str | None:
        """What the budget says against a proposal.

        With others under way it reckons with the worst of all that the proposal knows nothing of;
        alone with what everything did cost. So the answer does not depend on who is faster.
        """
        spent, worst = spent_on(known.entries), self._plan.worst(brief)
        reserved = total(self._worst_of(n) for n in range(len(known.entries), number))
        words = allows(self._plan.limits, spent, reserved, worst)
        if words is not None and not self._under_way:
            words = allows(self._plan.limits, spent_on(state.entries), Spent(), worst)
        return words

    def _worst_of(self, number: int) -> Spent:
        """The most that a proposal that was started may cost, settled or not."""
        folder = proposals.folder_of(self._folder, number)
        if (kept := pipeline.read_brief(folder)) is None:
            raise CodegenError(f"{folder / pipeline.INPUTS} is missing, and its proposal was made")
        return self._plan.worst(kept[0])

    # One step

    def _step(self, state: State) -> State:
        """Settles what is next, or trains what is certified, or fills the wait."""
        head = len(state.entries)
        ended = [n for n in sorted(self._under_way) if self._under_way[n].future.done()]
        if head in ended and not self._is_to_be_trained(head, state):
            return self._settle(head, state)
        for number in ended:
            if self._is_to_be_trained(number, state):
                self._trained[number] = self._train(number, state)
                return state
        left = self._rules.fill - self._filled.get(head, 0)
        if left > 0:
            filled = self._screening.fill(state, left)
            more = len(filled.records) - len(state.records)
            self._filled[head] = self._filled.get(head, 0) + max(1, more)
            return filled
        time.sleep(_POLL_SECONDS)
        self._tell(state)
        return state

    def _is_to_be_trained(self, number: int, state: State) -> bool:
        """Whether a proposal that has ended lacks a run."""
        if self._under_way[number].future.result().certified is None or number in self._trained:
            return False
        return equal_of(self._candidate(number, state), state.lasting) is None

    def _candidate(self, number: int, state: State) -> Proposal:
        """The candidate of a certified proposal."""
        brief, aim, future = self._under_way[number]
        return self._screening.candidate(aim, brief.provider, future.result(), state)

    def _train(self, number: int, state: State) -> Trained:
        """The runs of a candidate; that of whatever computes the same is its own."""
        candidate, run = self._candidate(number, state), None
        own = identity(candidate.spec, None, candidate.code)
        if (filler := equal_of(candidate, state.fillers)) is not None:
            ((_, run),) = self._screening.run([filler])  # known, so nothing is trained
        for other, trained in self._trained.items():
            (twin, found), *_ = trained
            if identity(twin.spec, None, twin.code) == own:
                if other < number:  # which will be settled first, and this one as the same
                    return [(candidate, found)]
                run = found
        return self._screening.train(candidate, number, self._known(number, state), run)

    def _settle(self, number: int, state: State) -> State:
        """Enters the next proposal into archive and books."""
        brief, aim, future = self._under_way[number]
        proposed = future.result()
        entry = entry_of(aim, brief.provider, proposed)
        if proposed.certified is not None:
            candidate = self._candidate(number, state)
            equal = equal_of(candidate, state.lasting)
            if equal is not None:
                entry = entry._replace(outcome=proposals.SAME, candidate=equal.id)
            else:
                state = self._screening.kept(state, self._trained.pop(number))
                gain = state.record(candidate.id).score - state.record(aim.parent).score
                gain = max(0.0, gain) if math.isfinite(gain) else 0.0
                entry = entry._replace(candidate=candidate.id, gain=gain)
        self._unanswered = self._unanswered + 1 if entry.outcome == proposals.FAILED else 0
        proposals.append(self._folder / proposals.FILE, entry)
        del self._under_way[number], self._drafts[number]
        state = state._replace(entries=(*state.entries, entry))
        self._tell(state, entry)
        return state

    def _tell(self, state: State, entry: Entry | None = None) -> None:
        ended = sum(each.future.done() for each in self._under_way.values())
        asking = len(self._under_way) - ended
        self._on_event(status_of(state, self._rules.proposals, asking, ended), entry, state.records)


def rules_of(config: ConfigDict) -> Rules:
    """How a config draws parents."""
    own, search = config.codegen, config.search
    slots = tuple(SLOTS) if own.scope == "all" else SCOPES[own.scope]
    return Rules(config.seed, own.islands, own.migrate, slots, search.survivors, search.tournament)


def in_thread(function: Callable[..., Any], *args: Any) -> Future:
    """Calls a function in a thread that does not keep this process from ending."""
    future: Future = Future()

    def call():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True, name=THREAD).start()
    return future
