"""Candidates with rewritten code trained as a search trains any, and entered into the archive.

The lanes that a candidate's program leaves over train mutants of its spec under the same code.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.codegen.campaign.islands import Aim
from nanoevolve_jax.codegen.campaign.pipeline import Proposed
from nanoevolve_jax.codegen.campaign.records import code_of_child, computation_of, inherited_code
from nanoevolve_jax.codegen.campaign.state import MUTANT, State
from nanoevolve_jax.evidence.runs import Run, Runs
from nanoevolve_jax.evidence.trajectories import save_telemetry
from nanoevolve_jax.evolution import archive, tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.campaign import (
    ARCHIVE,
    SCREENING,
    Campaign,
    identity,
    require_baseline,
    telemetry_columns,
)
from nanoevolve_jax.evolution.tournament import Proposal
from nanoevolve_jax.execution.settings import make_baseline
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.mutations import ExhaustedError, mutate

_MUTANTS, _FILLERS = 7, 8  # streams of random numbers

Trained = list[tuple[Proposal, Run]]


class Screening(NamedTuple):
    """Where candidates are screened."""

    campaign: Campaign
    runs: Runs  # of the same folder

    def found(self, state: State) -> State:
        """Trains the candidates that every island begins with.

        Raises:
          ConfigError: if the baseline fails.
        """
        founders = tournament.founders(make_baseline(self.campaign.config))
        state = self.kept(state, self.run(founders))
        require_baseline(list(state.records))
        return state

    def candidate(self, aim: Aim, provider: str, proposed: Proposed, state: State) -> Proposal:
        """The candidate that certified code makes of its parent."""
        parent = state.record(aim.parent)
        return Proposal(
            id=f"p{aim.number:04d}",
            parent_id=parent.id,
            generation=1 + aim.number // self.campaign.config.codegen.window,
            operator=f"code:{aim.slot}",
            change=f"code of {aim.slot} rewritten by {provider}",
            spec=parent.spec,
            code=code_of_child(parent, proposed, aim.number, provider),
        )

    def train(
        self, candidate: Proposal, number: int, known: State, run: Run | None = None
    ) -> Trained:
        """Trains a candidate, and mutants of its spec in the lanes that are left over.

        Args:
          candidate: see `candidate`.
          number: of its proposal.
          known: what the proposal may know of, so that mutants depend on nothing else.
          run: of whatever computes the same, if that was trained.
        """
        rng = np.random.default_rng([self.campaign.config.seed, _MUTANTS, number])
        lanes = self.campaign.engine.width - 1
        mutants = mutants_of(candidate, lanes, rng, known, f"{candidate.id}{MUTANT}{{}}".format)
        if run is None:
            return self.run([candidate, *mutants])
        return [(candidate, run), *self.run(mutants)]

    def fill(self, state: State, most: int) -> State:
        """Trains at most so many mutants of the best candidates, in one batch."""
        config = self.campaign.config
        count = sum(record.id.startswith(MUTANT) for record in state.records)
        rng = np.random.default_rng([config.seed, _FILLERS, count])
        pool = tournament.survivors(state.records, config.search.survivors)
        parent = tournament.draw_parent(pool, rng, config.search.tournament)

        def name(i: int) -> str:
            return f"{MUTANT}{count + i:04d}"

        width = min(self.campaign.engine.width, most)
        mutants = mutants_of(parent, width, rng, state, name)
        return self.kept(state, self.run(mutants)) if mutants else state

    def run(self, candidates: Sequence[Proposal | Record]) -> Trained:
        """Trains candidates of one code; what is known is not trained again."""
        jobs = [self.campaign.job(candidate) for candidate in candidates]
        return list(zip(candidates, self.runs.run(jobs, SCREENING), strict=True))

    def kept(self, state: State, made: Trained) -> State:
        """The state with new records, which are in the archive by then."""
        folder, known = self.campaign.folder, {record.id for record in state.records}
        fresh: list[Record] = []
        for candidate, run in made:
            if candidate.id not in known:
                save_telemetry(
                    folder, candidate.id, telemetry_columns(self.runs.telemetry(run), run.curve)
                )
                everyone = [*state.records, *fresh]
                baseline = everyone[0] if everyone else None
                fresh.append(self.campaign.judge(candidate, run, run.instability, baseline))
        fresh = tournament.settle(state.records, fresh, self.campaign.config.search.survivors)
        archive.append(folder / ARCHIVE, fresh)
        return state._replace(records=(*state.records, *fresh))


def mutants_of(
    parent: Proposal | Record,
    count: int,
    rng: np.random.Generator,
    state: State,
    name: Callable[[int], str],
) -> list[Proposal]:
    """At most so many mutants of a spec under the same code, none of which is known.

    Args:
      parent: of all of them.
      count: at most.
      rng: source of randomness; consumed.
      state: what is known.
      name: from a mutant's number, 1 at first, to its id.
    """
    code, computation = inherited_code(parent.code), computation_of(parent.code)
    known = {identity(r.spec, r.recipe, r.code) for r in state.records}
    seen = {canonical(r.spec) for r in state.records if computation_of(r.code) == computation}
    seen.add(canonical(parent.spec))
    found: list[Proposal] = []
    for number in range(1, count + 1):
        try:
            spec, operator, change = mutate(parent.spec, rng, seen)
        except ExhaustedError:
            break
        seen.add(canonical(spec))
        if identity(spec, None, code) not in known:  # a gate that is off takes code with it
            generation = max(1, parent.generation)
            child = Proposal(name(number), parent.id, generation, operator, change, spec)
            found.append(child._replace(code=code))
    return found


def equal_of(candidate: Proposal, records: Iterable[Record]) -> Record | None:
    """The first of some records that would be trained as a candidate is."""
    own = identity(candidate.spec, None, candidate.code)
    alike = (r for r in records if r.recipe is None and identity(r.spec, None, r.code) == own)
    return next(alike, None)
