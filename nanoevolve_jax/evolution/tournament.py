"""What to try next: the founding candidates, then mutants of the survivors.

Pure functions of the records and a generator seeded from (seed, generation), so a search that
is stopped and run again draws the same children.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.evidence.score import pareto_front
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.mutations import describe_change, mutate
from nanoevolve_jax.policy.spec import NANOCHAT, PRESETS, OptimizerSpec


class Proposal(NamedTuple):
    """A candidate that has not been trained yet."""

    id: str
    parent_id: str | None
    generation: int
    operator: str | None
    change: str | None
    spec: OptimizerSpec


BASELINE_ID = "nanochat"


def founders() -> list[Proposal]:
    """Generation 0: the baseline first, then the other presets."""
    return [
        Proposal(
            id=name,
            parent_id=None if name == BASELINE_ID else BASELINE_ID,
            generation=0,
            operator=None if name == BASELINE_ID else "preset",
            change=None if name == BASELINE_ID else describe_change(NANOCHAT, spec),
            spec=spec,
        )
        for name, spec in PRESETS.items()
    ]


def survivors(records: Sequence[Record], count: int) -> list[Record]:
    """The best `count` candidates so far, best first; the dead never survive."""
    alive = [record for record in records if record.failure is None]
    return sorted(alive, key=lambda record: (-record.score, record.generation, record.id))[:count]


def children(
    records: Sequence[Record],
    *,
    generation: int,
    seed: int,
    population: int,
    parents: int,
    tournament: int,
) -> list[Proposal]:
    """Proposes the next generation.

    Each child's parent is the best of `tournament` draws from the survivors; no child equals
    any earlier candidate.

    Raises:
      ExhaustedError: if no new child can be found.
    """
    rng = np.random.default_rng([seed, generation])
    pool = survivors(records, parents)
    seen = {canonical(record.spec) for record in records}
    proposals = []
    for number in range(population):
        # The pool is sorted, so the smallest index drawn wins the tournament.
        parent = pool[min(rng.integers(len(pool), size=tournament))]
        mutation = mutate(parent.spec, rng, seen)
        seen.add(canonical(mutation.spec))
        proposals.append(
            Proposal(
                id=f"g{generation:03d}c{number:02d}",
                parent_id=parent.id,
                generation=generation,
                operator=mutation.operator,
                change=mutation.change,
                spec=mutation.spec,
            )
        )
    return proposals


def settle(earlier: Sequence[Record], fresh: Sequence[Record], parents: int) -> list[Record]:
    """Gives the records of a finished generation their status and their place on the front."""
    everyone = [*earlier, *fresh]
    kept = {record.id for record in survivors(everyone, parents)}
    front = set(pareto_front({record.id: record.merit for record in everyone}))

    def status(record):
        if record.failure is not None:
            return "dead"
        if record.id == BASELINE_ID:
            return "baseline"
        return "survivor" if record.id in kept else "rejected"

    return [r._replace(status=status(r), pareto=r.id in front) for r in fresh]


def lineage(records: Sequence[Record], candidate: str) -> list[Record]:
    """The candidate's ancestors, the founder first, itself last."""
    by_id = {record.id: record for record in records}
    chain = [by_id[candidate]]
    while chain[0].parent_id is not None:
        chain.insert(0, by_id[chain[0].parent_id])
    return chain
