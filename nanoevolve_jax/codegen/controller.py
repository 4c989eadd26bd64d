"""The loop of a campaign of code: aim, ask, validate, train, keep; again.

Proposals are pursued in threads, a window of them at once, each a chain of child processes; this
thread trains whatever is certified. What a proposal aims at depends on proposals a window before it
and no others, and books and archive are written in the order of the numbers. So neither slow
providers nor kills change what is in them.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.codegen import books, pipeline
from nanoevolve_jax.codegen.books import Entry
from nanoevolve_jax.codegen.budget import Limits, Spent, allows, total
from nanoevolve_jax.codegen.islands import MUTANT, Aim, Rules, origin
from nanoevolve_jax.codegen.islands import aim as aim_of
from nanoevolve_jax.codegen.pipeline import Proposed, Request, Steps
from nanoevolve_jax.codegen.records import (
    code_of_child,
    computation_of,
    entry_of,
    inherited_code,
)
from nanoevolve_jax.evidence.runs import Run, Runs
from nanoevolve_jax.evidence.telemetry import save_telemetry
from nanoevolve_jax.evolution import archive, tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.campaign import (
    ARCHIVE,
    SCREENING,
    Campaign,
    identity,
    require_baseline,
)
from nanoevolve_jax.evolution.tournament import Proposal
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.execution.settings import make_baseline
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.mutations import ExhaustedError, mutate
from nanoevolve_jax.policy.slots import SCOPES, SLOTS

_POLL_SECONDS = 0.1
_MUTANTS, _FILLERS = 7, 8  # streams of random numbers


class Plan(NamedTuple):
    """What the controller needs of the world of providers."""

    request: Callable[[Aim, "State"], Request]
    worst: Callable[[Request], Spent]  # of a whole proposal, both its tries
    steps: Steps
    limits: Limits


class State(NamedTuple):
    """What is settled."""

    entries: tuple[Entry, ...]
    records: tuple[Record, ...]  # founders first

    def record(self, name: str) -> Record:
        """The record of an id."""
        return next(record for record in self.records if record.id == name)

    @property
    def founders(self) -> list[Record]:
        """The candidates that no proposal made."""
        return [record for record in self.records if record.generation == 0]

    def before(self, count: int) -> "State":
        """What was settled when so many proposals were."""
        entries = self.entries[:count]
        names = {entry.candidate for entry in entries if entry.outcome == books.CANDIDATE}
        kept = [r for r in self.records if r.generation == 0 or origin(r.id) in names]
        return State(entries, tuple(kept))


class Status(NamedTuple):
    """Where the campaign is, for its one line."""

    settled: int
    proposals: int  # at most
    asking: int  # with a provider or in the jail
    ready: int  # certified and not yet settled
    best: Record
    baseline: Record
    spent: Spent
    refused: int


class Controller:
    """One campaign of code on one run folder."""

    def __init__(
        self,
        campaign: Campaign,
        runs: Runs,
        plan: Plan,
        *,
        stopping: Callable[[], bool],
        hear: Callable[[Status, Entry | None, Sequence[Record]], None],
    ):
        """Reads what is settled.

        Args:
          campaign: screening: config, folder, engine, scale.
          runs: where every training run is kept.
          plan: prompts, providers, the jail.
          stopping: whether someone has asked to stop.
          hear: takes the status, a proposal that was settled and the records.
        """
        self._campaign, self._runs, self._plan = campaign, runs, plan
        self._stopping, self._hear = stopping, hear
        self._rules = campaign.config.codegen
        self._folder: Path = campaign.folder
        self._under_way: dict[int, Future[Proposed]] = {}
        self._requests: dict[int, tuple[Request, Aim]] = {}
        self._trained: dict[int, list[tuple[Proposal, Run]]] = {}
        self._filled: dict[int, int] = {}  # mutants that filled a wait for a proposal
        self._ended: str | None = None

    def run(self, state: State) -> tuple[State, str]:
        """Runs the campaign until it ends; gives what is settled and why it ended.

        Raises:
          CheckpointError, Interrupted, ClusterError: of the engine.
        """
        if not state.records:
            state = self._found(state)
        while True:
            if self._stopping():  # calls under way go on without this process, and are found again
                raise Interrupted
            self._start(state)
            if not self._under_way:
                return state, self._ended
            state = self._step(state)

    # Starting

    def _start(self, state: State) -> None:
        """Starts the proposals that may be started now."""
        while self._ended is None:
            number = len(state.entries) + len(self._under_way)
            if number >= self._rules.proposals:
                self._ended = f"all {self._rules.proposals} proposals are made"
                return
            if len(self._under_way) >= self._rules.window:
                return
            # A window before, whatever may be known of later ones by now.
            known = state.before(max(0, number - self._rules.window + 1))
            if self._is_plateau(known):
                self._ended = f"no better candidate in {self._rules.plateau} proposals"
                return
            request, aim = self._request(number, known)
            words = allows(
                self._plan.limits,
                spent_on(known.entries),
                total(self._worst_of(n) for n in range(len(known.entries), number)),
                self._plan.worst(request),
            )
            if words is not None and self._under_way:
                return  # there may be room when those are settled
            if words is not None:
                exact = allows(
                    self._plan.limits, spent_on(state.entries), Spent(), self._plan.worst(request)
                )
                if exact is not None:
                    self._ended = exact
                    return
            folder = books.folder_of(self._folder, number)
            if pipeline.read_request(folder) is None:
                pipeline.write_request(folder, request, {"aim": aim._asdict()})
            self._under_way[number] = in_thread(pipeline.pursue, folder, request, self._plan.steps)

    def _request(self, number: int, known: State) -> tuple[Request, Aim]:
        """What a proposal asks; the first answer to that question stands for ever."""
        if number not in self._requests:
            self._requests[number] = self._new_request(number, known)
        return self._requests[number]

    def _new_request(self, number: int, known: State) -> tuple[Request, Aim]:
        kept = pipeline.read_request(books.folder_of(self._folder, number))
        if kept is not None:
            request, more = kept
            return request, Aim(**more["aim"] | {"shown": tuple(more["aim"]["shown"])})
        aim = aim_of(
            number,
            known.founders,
            known.entries,
            [record for record in known.records if record.generation],
            rules_of(self._campaign.config),
        )
        return self._plan.request(aim, known), aim

    def _worst_of(self, number: int) -> Spent:
        """The most that a proposal before this one may cost, settled or not."""
        kept = pipeline.read_request(books.folder_of(self._folder, number))
        return self._plan.worst(kept[0])

    def _is_plateau(self, known: State) -> bool:
        """Whether the last proposals that are known brought nothing better."""
        patience = self._rules.plateau
        if not patience or len(known.entries) < patience:
            return False
        before = known.before(len(known.entries) - patience)
        return best_of(known).score <= best_of(before).score

    # One step

    def _step(self, state: State) -> State:
        """Trains what is certified, settles what is next, or fills the wait."""
        number = len(state.entries)
        if self._under_way[number].done() and self._is_ready(number, state):
            return self._settle(number, state)
        for other in sorted(self._under_way):
            done = self._under_way[other].done()
            if done and other not in self._trained and not self._is_ready(other, state):
                self._trained[other] = self._train(other, state)
                return state
        return self._fill(state) or self._wait(state)

    def _wait(self, state: State) -> State:
        time.sleep(_POLL_SECONDS)
        self._tell(state)
        return state

    def _is_ready(self, number: int, state: State) -> bool:
        """Whether nothing is to be trained any more before a proposal can be settled."""
        proposed = self._under_way[number].result()
        if proposed.certified is None or number in self._trained:
            return True
        return self._same(self._proposal(number, state), state) is not None

    def _proposal(self, number: int, state: State) -> Proposal:
        """The candidate that a certified proposal makes of its parent."""
        proposed = self._under_way[number].result()
        request, aim = self._requests[number]
        parent = state.record(aim.parent)
        return Proposal(
            id=f"p{number:04d}",
            parent_id=parent.id,
            generation=1 + number // self._rules.window,
            operator=f"code:{aim.slot}",
            change=f"code of {aim.slot} rewritten by {request.provider}",
            spec=parent.spec,
            code=code_of_child(parent, proposed, number, request.provider),
        )

    def _same(self, proposal: Proposal, state: State) -> str | None:
        """The id of a settled candidate that computes the same."""
        own = identity(proposal.spec, None, proposal.code)
        for record in state.records:
            if record.recipe is None and identity(record.spec, None, record.code) == own:
                return record.id
        return None

    def _train(self, number: int, state: State) -> list[tuple[Proposal, Run]]:
        """Trains a candidate, and mutants of its spec in the lanes that are left over."""
        proposal = self._proposal(number, state)
        own = identity(proposal.spec, None, proposal.code)
        for made in self._trained.values():  # of a later number that was faster
            if made and identity(made[0][0].spec, None, made[0][0].code) == own:
                return [(proposal, made[0][1])]
        rng = np.random.default_rng([self._campaign.config.seed, _MUTANTS, number])
        lanes = self._campaign.engine.width - 1
        known = state.before(max(0, number - self._rules.window + 1))
        name = lambda i: f"{proposal.id}{MUTANT}{i}"  # noqa: E731
        mutants = self._mutants(proposal, lanes, rng, known, name)
        return self._run([proposal, *mutants])

    def _mutants(
        self,
        parent: Proposal | Record,
        count: int,
        rng: np.random.Generator,
        state: State,
        name: Callable[[int], str],
    ) -> list[Proposal]:
        """Mutants of a spec under the same code that nobody has tried."""
        known = {identity(r.spec, r.recipe, r.code) for r in state.records}
        code, computation = inherited_code(parent.code), computation_of(parent.code)
        seen = {canonical(r.spec) for r in state.records if computation_of(r.code) == computation}
        seen.add(canonical(parent.spec))
        found: list[Proposal] = []
        for i in range(count):
            try:
                mutation = mutate(parent.spec, rng, seen)
            except ExhaustedError:
                break
            seen.add(canonical(mutation.spec))
            if identity(mutation.spec, None, code) not in known:
                found.append(
                    Proposal(
                        name(i + 1),
                        parent.id,
                        max(1, parent.generation),
                        mutation.operator,
                        mutation.change,
                        mutation.spec,
                        code=code,
                    )
                )
        return found

    def _run(self, proposals: Sequence[Proposal]) -> list[tuple[Proposal, Run]]:
        """Trains candidates of one code; what is known is not trained again."""
        jobs = [self._campaign.job(proposal) for proposal in proposals]
        return list(zip(proposals, self._runs.run(jobs, SCREENING), strict=True))

    # Settling

    def _found(self, state: State) -> State:
        """Trains the candidates that every island begins with."""
        made = self._run(tournament.founders(make_baseline(self._campaign.config)))
        state = self._kept(state, made)
        require_baseline(list(state.records))
        self._tell(state)
        return state

    def _kept(self, state: State, made: Sequence[tuple[Proposal, Run]]) -> State:
        """The state with new records, which are in the archive by then."""
        known = {record.id for record in state.records}
        fresh: list[Record] = []
        for proposal, run in made:
            if proposal.id not in known:
                columns = self._runs.telemetry(run)
                save_telemetry(self._folder, proposal.id, with_curve(columns, run))
                everyone = [*state.records, *fresh]
                baseline = everyone[0] if everyone else None
                fresh.append(self._campaign.judge(proposal, run, run.instability, baseline))
        survivors = self._campaign.config.search.survivors
        fresh = tournament.settle(state.records, fresh, survivors)
        archive.append(self._folder / ARCHIVE, fresh)
        return state._replace(records=(*state.records, *fresh))

    def _settle(self, number: int, state: State) -> State:
        """Enters the next proposal into archive and books."""
        proposed = self._under_way[number].result()
        request, aim = self._requests[number]
        entry = entry_of(number, request, aim, proposed)
        if proposed.certified is not None:
            proposal = self._proposal(number, state)
            twin = self._same(proposal, state)
            if twin not in (None, proposal.id):
                entry = entry._replace(outcome=books.SAME, candidate=twin)
            else:
                made = self._trained.pop(number, None) or self._train(number, state)
                state = self._kept(state, made)
                gain = state.record(proposal.id).score - state.record(aim.parent).score
                gain = max(0.0, gain) if np.isfinite(gain) else 0.0
                entry = entry._replace(candidate=proposal.id, gain=gain)
        books.append(self._folder / books.FILE, entry)
        del self._under_way[number], self._requests[number]
        state = state._replace(entries=(*state.entries, entry))
        self._tell(state, entry)
        return state

    # Waiting

    def _fill(self, state: State) -> State | None:
        """Trains mutants of the best candidates while no code is there; None after enough."""
        number = len(state.entries)
        if self._filled.get(number, 0) >= self._rules.fill:
            return None
        count = sum(record.id.startswith(MUTANT) for record in state.records)
        rng = np.random.default_rng([self._campaign.config.seed, _FILLERS, count])
        pool = tournament.survivors(state.records, self._campaign.config.search.survivors)
        parent = tournament.draw_parent(pool, rng, self._campaign.config.search.tournament)
        width = min(self._campaign.engine.width, self._rules.fill - self._filled.get(number, 0))
        name = lambda i: f"{MUTANT}{count + i:04d}"  # noqa: E731
        mutants = self._mutants(parent, width, rng, state, name)
        self._filled[number] = self._filled.get(number, 0) + max(1, len(mutants))
        return self._kept(state, self._run(mutants)) if mutants else None

    def _tell(self, state: State, entry: Entry | None = None) -> None:
        done = [future for future in self._under_way.values() if future.done()]
        status = Status(
            settled=len(state.entries),
            proposals=self._rules.proposals,
            asking=len(self._under_way) - len(done),
            ready=len(done),
            best=best_of(state),
            baseline=state.records[0],
            spent=spent_on(state.entries),
            refused=sum(e.outcome == books.REFUSED for e in state.entries),
        )
        self._hear(status, entry, state.records)


def in_thread(function: Callable[..., Any], *args: Any) -> Future:
    """Calls a function in a thread that does not keep this process from ending."""
    future: Future = Future()

    def call():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def with_curve(columns: dict[str, np.ndarray], run: Run) -> dict[str, np.ndarray]:
    """A run's telemetry as a candidate's is kept: gradient norm and validation curve with it."""
    curve = np.asarray(run.curve, np.float64).reshape(-1, 2)
    others = {name: column for name, column in columns.items() if name != "log_grad_norm"}
    return others | {
        "grad_norm": np.exp(columns["log_grad_norm"]),
        "validation_step": curve[:, 0].astype(np.int64),
        "validation_bpb": curve[:, 1],
    }


def rules_of(config: ConfigDict) -> Rules:
    """How a config draws parents."""
    own, search = config.codegen, config.search
    slots = tuple(SLOTS) if own.scope == "all" else SCOPES[own.scope]
    return Rules(config.seed, own.islands, own.migrate, slots, search.survivors, search.tournament)


def best_of(state: State) -> Record:
    """The best policy that is settled."""
    return tournament.survivors(state.records, 1)[0]


def spent_on(entries: Sequence[Entry]) -> Spent:
    """What settled proposals cost."""
    return total(
        Spent(e.calls, e.input_tokens + e.output_tokens, e.dollars, e.seconds) for e in entries
    )
