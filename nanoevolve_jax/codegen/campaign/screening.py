"""Trains candidates with rewritten code, as a search does, and enters them into the archive.

A candidate occupies a single lane. The remaining lanes of its batch train mutants of its spec with
the same code.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.codegen.campaign.proposal import Result
from nanoevolve_jax.codegen.campaign.state import MUTANT, State, Target
from nanoevolve_jax.evidence.runs import Run, Runs
from nanoevolve_jax.evidence.trajectories import save_telemetry
from nanoevolve_jax.evolution import archive, proposals, tournament
from nanoevolve_jax.evolution.archive import CODE, Record
from nanoevolve_jax.evolution.campaign import (
    ARCHIVE,
    SCREENING,
    Campaign,
    identity,
    require_baseline,
    telemetry_columns,
)
from nanoevolve_jax.evolution.proposals import Entry
from nanoevolve_jax.evolution.tournament import Proposal
from nanoevolve_jax.execution.settings import make_baseline
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.mutations import ExhaustedError, mutate

_MUTANTS, _FILLERS = 7, 8  # streams of random numbers

Code = dict[str, Any]  # value of a record's field `code`, see `archive.CODE`
Trained = list[tuple[Proposal, Run]]


class Screening(NamedTuple):
    """Training of candidates, whose records are entered into the archive."""

    campaign: Campaign
    runs: Runs  # runs of the same run folder

    def train_founders(self, state: State) -> State:
        """Trains the founders, which are the first candidates of every island.

        Args:
          state: Settled state to add the records to.

        Returns:
          State with the records of the founders.

        Raises:
          ConfigError: If the baseline fails.
        """
        founders = tournament.founders(make_baseline(self.campaign.config))
        state = self._entered(state, self._run(founders))
        require_baseline(list(state.records))
        return state

    def candidate(self, target: Target, provider: str, result: Result, state: State) -> Proposal:
        """Returns the candidate of a certified proposal.

        Args:
          target: Parent and slot that the proposal edits.
          provider: Name of the profile that wrote the code.
          result: Result of the proposal, with a certificate.
          state: Settled state, which contains the parent.
        """
        parent = state.record(target.parent)
        return Proposal(
            id=f"p{target.number:04d}",
            parent_id=parent.id,
            generation=1 + target.number // self.campaign.config.codegen.window,
            operator=f"code:{target.slot}",
            change=f"code of {target.slot} rewritten by {provider}",
            spec=parent.spec,
            code=code_of_child(parent, result, target.number, provider),
        )

    def train(
        self,
        candidate: Proposal,
        number: int,
        known: State,
        state: State,
        filler: Record | None = None,
    ) -> State:
        """Trains a candidate, and mutants of its spec in the remaining lanes.

        Args:
          candidate: Candidate of a proposal.
          number: Number of the proposal.
          known: Settled state that the proposal depends on. It alone determines which mutants are
            new.
          state: State to add the records to.
          filler: Record of a filler with the same computation, whose run is reused, or None.

        Returns:
          State with the records of the candidate and its mutants.
        """
        rng = np.random.default_rng([self.campaign.config.seed, _MUTANTS, number])
        lanes = self.campaign.engine.width - 1
        mutants = mutants_of(candidate, lanes, rng, known, f"{candidate.id}{MUTANT}{{}}".format)
        if filler is None:
            return self._entered(state, self._run([candidate, *mutants]))
        ((_, run),) = self._run([filler])
        return self._entered(state, [(candidate, run), *self._run(mutants)])

    def fill(self, state: State, most: int) -> State:
        """Trains mutants of one of the best candidates in a single batch.

        Args:
          state: State to add the records to.
          most: Largest number of mutants.

        Returns:
          State with the records of the mutants.
        """
        config = self.campaign.config
        count = sum(record.id.startswith(MUTANT) for record in state.records)
        rng = np.random.default_rng([config.seed, _FILLERS, count])
        pool = tournament.survivors(state.records, config.search.survivors)
        parent = tournament.draw_parent(pool, rng, config.search.tournament)
        width = min(self.campaign.engine.width, most)
        mutants = mutants_of(parent, width, rng, state, lambda i: f"{MUTANT}{count + i:04d}")
        return self._entered(state, self._run(mutants)) if mutants else state

    def _run(self, candidates: Sequence[Proposal | Record]) -> Trained:
        """Trains candidates that share the same code. Known runs are not repeated."""
        jobs = [self.campaign.job(candidate) for candidate in candidates]
        return list(zip(candidates, self.runs.run(jobs, SCREENING), strict=True))

    def _entered(self, state: State, trained: Trained) -> State:
        """Appends new candidates to the archive and returns the state with their records."""
        folder, known = self.campaign.folder, {record.id for record in state.records}
        fresh: list[Record] = []
        for candidate, run in trained:
            if candidate.id not in known:
                columns = telemetry_columns(self.runs.telemetry(run), run.curve)
                save_telemetry(folder, candidate.id, columns)
                baseline = next(iter([*state.records, *fresh]), None)
                fresh.append(self.campaign.judge(candidate, run, run.instability, baseline))
        fresh = tournament.settle(state.records, fresh, self.campaign.config.search.survivors)
        archive.append(folder / ARCHIVE, fresh)
        return state._replace(records=(*state.records, *fresh))


def mutants_of(
    parent: Proposal | Record,
    count: int,
    rng: np.random.Generator,
    state: State,
    id_of: Callable[[int], str],
) -> list[Proposal]:
    """Returns up to `count` new mutants of a candidate's spec with the candidate's code.

    Args:
      parent: Candidate whose spec is mutated.
      count: Largest number of mutants.
      rng: Random generator; its state is advanced.
      state: State with the known candidates, which are not proposed again.
      id_of: Function that takes the number of a mutant, counted from 1, and returns its id.
    """
    code, computation = inherited_code(parent.code), _computation(parent.code)
    known = {identity(r.spec, r.recipe, r.code) for r in state.records}
    seen = {canonical(r.spec) for r in state.records if _computation(r.code) == computation}
    seen.add(canonical(parent.spec))
    mutants: list[Proposal] = []
    for number in range(1, count + 1):
        try:
            spec, operator, change = mutate(parent.spec, rng, seen)
        except ExhaustedError:
            break
        seen.add(canonical(spec))
        # Specs with different code can be identical, because a spec ignores code while its gate is
        # off.
        if identity(spec, None, code) not in known:
            generation = max(1, parent.generation)
            mutant = Proposal(id_of(number), parent.id, generation, operator, change, spec)
            mutants.append(mutant._replace(code=code))
    return mutants


def equal_of(candidate: Proposal, records: Iterable[Record]) -> Record | None:
    """Returns the first record whose training run equals that of a candidate, or None.

    Args:
      candidate: Candidate with the original recipe.
      records: Records to compare with.
    """
    own = identity(candidate.spec, None, candidate.code)
    equal = (r for r in records if r.recipe is None and identity(r.spec, None, r.code) == own)
    return next(equal, None)


def code_of_child(parent: Record, result: Result, number: int, provider: str) -> Code:
    """Returns the code of a candidate: the code of its parent with one slot rewritten.

    If the new function has the same computation as the built-in function of the slot, the slot uses
    the built-in function again.

    Args:
      parent: Record whose code is rewritten.
      result: Result of the proposal, with a certificate.
      number: Number of the proposal.
      provider: Name of the profile that wrote the code.
    """
    function = result.certified
    inherited = parent.code or {"certificates": {}, "computation": {}}
    certificates = inherited["certificates"] | {function.slot: function.id}
    computation = inherited["computation"] | {function.slot: function.computation}
    if function.computation == function.certificate["seed_computation"]:
        del certificates[function.slot], computation[function.slot]
    return {
        "certificates": dict(sorted(certificates.items())),
        "slot": function.slot,
        "source": function.source,
        "diff": result.diff,
        "certificate": dict(function.certificate),
        "computation": dict(sorted(computation.items())),
        "proposal": number,
        "cost": _cost(provider, result),
    }


def inherited_code(code: Code | None) -> Code | None:
    """Returns the code of a child that inherits its parent's functions unchanged.

    Args:
      code: Code of the parent, or None if it uses only built-in functions.

    Returns:
      Code without the fields that describe the parent's own rewrite, or None.
    """
    kept = ("certificates", "computation")
    return code and {name: code[name] if name in kept else None for name in CODE}


def entry_of(target: Target, provider: str, result: Result) -> Entry:
    """Returns the journal entry of a proposal whose candidate is not trained yet.

    Args:
      target: Parent and slot that the proposal edits.
      provider: Name of the profile that was asked.
      result: Result of the proposal.
    """
    refused = proposals.FAILED if result.reason is None else proposals.REFUSED
    return Entry(
        number=target.number,
        island=target.island,
        slot=target.slot,
        parent=target.parent,
        outcome=refused if result.certified is None else proposals.CANDIDATE,
        candidate=None,
        reason=result.reason,
        message=result.message,
        gain=0.0,
        **_cost(provider, result),
    )


def _cost(provider: str, result: Result) -> dict[str, Any]:
    answers = result.answers
    return {
        "provider": provider,
        "calls": sum(answer.requests for answer in answers),
        "input_tokens": sum(answer.input_tokens for answer in answers),
        "output_tokens": sum(answer.output_tokens for answer in answers),
        "dollars": sum(answer.dollars for answer in answers),
        "seconds": sum(answer.seconds for answer in answers),
    }


def _computation(code: Code | None) -> Mapping[str, str]:
    """Returns the hash of the computation of each rewritten slot."""
    return code["computation"] if code else {}
