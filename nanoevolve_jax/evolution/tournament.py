"""What to try next: the founding candidates, then mutants of the survivors.

Pure functions of the records and a generator seeded from (seed, generation), so a search that
is stopped and run again draws the same children.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.evidence.score import pareto_front
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.mutations import describe_change, mutate
from nanoevolve_jax.policy.spec import OptimizerSpec, presets_on


class Proposal(NamedTuple):
    """A candidate that has not been trained yet."""

    id: str
    parent_id: str | None
    generation: int
    operator: str | None
    change: str | None
    spec: OptimizerSpec
    recipe: dict[str, float] | None = None  # overrides; only the control lineage has any
    code: dict[str, Any] | None = None  # see `archive.CODE`


BASELINE_ID = "nanochat"


def founders(baseline: OptimizerSpec) -> list[Proposal]:
    """Generation 0: the baseline first, then the other presets on top of it."""
    presets = presets_on(baseline)
    return [
        Proposal(
            id=name,
            parent_id=None if name == BASELINE_ID else BASELINE_ID,
            generation=0,
            operator=None if name == BASELINE_ID else "preset",
            change=None if name == BASELINE_ID else describe_change(presets[BASELINE_ID], spec),
            spec=spec,
        )
        for name, spec in presets.items()
    ]


def best_first(records: Sequence[Record]) -> list[Record]:
    """The records that did not fail, by score."""
    alive = [record for record in records if record.failure is None]
    return sorted(alive, key=_rank)


def _rank(record: Record) -> tuple[float, int, str]:
    return -record.score, record.generation, record.id


def survivors(records: Sequence[Record], count: int) -> list[Record]:
    """The best `count` policies so far, best first; neither the dead nor the controls."""
    return best_first([record for record in records if record.recipe is None])[:count]


def running_best(records: Sequence[Record]) -> list[Record | None]:
    """The best policy up to each record, by score in screening; None while none has trained."""
    best, bests = None, []
    for record in records:
        trained = record.recipe is None and math.isfinite(record.merit.val_bpb)
        if trained and (best is None or _rank(record) < _rank(best)):
            best = record
        bests.append(best)
    return bests


def best_control(records: Sequence[Record]) -> Record | None:
    """The best of the control lineage, if it has a living member."""
    return next(iter(best_first([r for r in records if r.recipe is not None])), None)


def draw_parent(pool: Sequence[Record], rng: np.random.Generator, tournament: int) -> Record:
    """The best of `tournament` draws from a pool that is sorted, best first."""
    return pool[min(rng.integers(len(pool), size=tournament))]


def children(
    records: Sequence[Record],
    recipe: dict[str, float],
    *,
    generation: int,
    seed: int,
    population: int,
    parents: int,
    tournament: int,
    control_every: int,
) -> list[Proposal]:
    """Proposes the next generation.

    Each child's parent is drawn from the survivors by tournament; no child equals any earlier
    candidate. Every `control_every`-th child of the campaign (0: none) descends from the best
    control instead and changes only the recipe.

    Raises:
      ExhaustedError: if no new child can be found.
    """
    rng = np.random.default_rng([seed, generation])
    pool = survivors(records, parents)
    seen = {canonical(record.spec) for record in records}
    baseline = records[0]
    proposals = []
    for number in range(population):
        slot = (generation - 1) * population + number + 1
        name = f"g{generation:03d}c{number:02d}"
        if control_every and slot % control_every == 0:
            parent = best_control(records)
            own = (parent and parent.recipe) or {}
            changed, change = mutate_recipe(recipe | own, rng)
            overrides = own | changed
            spec = _spec_of(baseline.spec, overrides)
            proposals.append(
                Proposal(
                    name,
                    (parent or baseline).id,
                    generation,
                    CONTROL,
                    change,
                    spec,
                    overrides,
                )
            )
            continue
        parent = draw_parent(pool, rng, tournament)
        mutation = mutate(parent.spec, rng, seen)
        seen.add(canonical(mutation.spec))
        proposals.append(
            Proposal(name, parent.id, generation, mutation.operator, mutation.change, mutation.spec)
        )
    return proposals


def settle(earlier: Sequence[Record], fresh: Sequence[Record], parents: int) -> list[Record]:
    """Gives the records of a finished generation their status and their place on the front."""
    everyone = [*earlier, *fresh]
    kept = {record.id for record in survivors(everyone, parents)}
    if (control_record := best_control(everyone)) is not None:
        kept.add(control_record.id)
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


CONTROL = "adjust_recipe"  # operator of the control lineage
_ADAMW = ("embedding_lr", "unembedding_lr", "scalar_lr")
_DIGITS = 4

Values = dict[str, float]


def _scale(*names: str, spread: float) -> Callable[[Values, np.random.Generator], Values]:
    def operator(values, rng):
        factor = float(np.exp(rng.normal(0.0, spread)))
        return {name: values[name] * factor for name in names}

    return operator


def _shift(name: str, spread: float) -> Callable[[Values, np.random.Generator], Values]:
    return lambda values, rng: {name: values[name] + float(rng.normal(0.0, spread))}


def _scale_memory(name: str, spread: float) -> Callable[[Values, np.random.Generator], Values]:
    return lambda values, rng: {
        name: 1.0 - (1.0 - values[name]) * float(np.exp(rng.normal(0.0, spread)))
    }


_RECIPE_OPERATORS = (
    _scale("matrix_lr", spread=0.3),
    _scale(*_ADAMW, spread=0.3),
    _scale("weight_decay", spread=0.7),
    _shift("warmup_fraction", spread=0.03),
    _shift("warmdown_fraction", spread=0.1),
    _shift("final_lr_fraction", spread=0.05),
    _scale_memory("momentum", spread=0.5),
    _scale_memory("second_moment_beta", spread=0.5),
)


def _bounded(name: str, value: float) -> float:
    setting = SETTINGS[f"recipe.{name}"]
    return min(max(float(f"{value:.{_DIGITS}g}"), setting.low), setting.high)


def mutate_recipe(values: Values, rng: np.random.Generator) -> tuple[Values, str]:
    """Changes one aspect of a recipe.

    Args:
      values: every field of the recipe, named as in `configs.base.SETTINGS`.
      rng: source of randomness; consumed.

    Returns:
      (the fields that changed, the change in words).
    """
    while True:
        operator = _RECIPE_OPERATORS[rng.integers(len(_RECIPE_OPERATORS))]
        changed = {name: _bounded(name, x) for name, x in operator(values, rng).items()}
        if any(values[name] != x for name, x in changed.items()):
            words = (f"recipe.{name} {values[name]:g} -> {x:g}" for name, x in changed.items())
            return changed, "; ".join(words)


def _spec_of(baseline: OptimizerSpec, overrides: Values) -> OptimizerSpec:
    """The baseline's spec under overrides; two of a recipe's fields live in the spec."""
    own = {name: x for name, x in overrides.items() if name not in Recipe._fields}
    return baseline._replace(**own)
