"""Candidates of a search: founders, children of the survivors, and the control lineage.

All functions are pure. Random numbers come from a generator that is seeded with (seed, generation),
so a search that is stopped and resumed draws the same children.

The control lineage mutates only the recipe. It has the same opportunities to improve its tuning as
the policies have, so a policy does not win only because the baseline was not tuned perfectly.
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
    operator: str | None  # operator that produced it from its parent
    change: str | None  # difference from the parent, in words
    spec: OptimizerSpec
    recipe: dict[str, float] | None = None  # recipe overrides of a control; None for a policy
    code: dict[str, Any] | None = None  # see `archive.CODE`


BASELINE_ID = "nanochat"


def founders(baseline: OptimizerSpec) -> list[Proposal]:
    """Returns the candidates of generation 0: the baseline, then the other presets based on it."""
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
    """Returns the records of candidates that did not fail, best score first."""
    alive = [record for record in records if record.failure is None]
    return sorted(alive, key=_rank)


def _rank(record: Record) -> tuple[float, int, str]:
    return -record.score, record.generation, record.id


def survivors(records: Sequence[Record], count: int) -> list[Record]:
    """Returns the best policies, best first. Controls and failed candidates are left out.

    Args:
      records: Records of candidates.
      count: Maximum number of policies.
    """
    return best_first([record for record in records if record.recipe is None])[:count]


def running_best(records: Sequence[Record]) -> list[Record | None]:
    """Returns the best policy up to and including each record; None before the first policy."""
    best, bests = None, []
    for record in records:
        trained = record.recipe is None and math.isfinite(record.merit.val_bpb)
        if trained and (best is None or _rank(record) < _rank(best)):
            best = record
        bests.append(best)
    return bests


def best_control(records: Sequence[Record]) -> Record | None:
    """Returns the best record of the control lineage that did not fail, or None."""
    return next(iter(best_first([r for r in records if r.recipe is not None])), None)


def draw_parent(pool: Sequence[Record], rng: np.random.Generator, tournament: int) -> Record:
    """Draws a parent by tournament selection.

    Args:
      pool: Records, best first.
      rng: Random number generator, which is advanced.
      tournament: Number of records to draw.

    Returns:
      The best of the drawn records.
    """
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
    """Returns the candidates of a generation after the first.

    The parent of each child is drawn from the survivors by tournament selection. Children differ
    from all earlier candidates. Every `control_every`-th child of the campaign instead mutates the
    recipe of the best control.

    Args:
      records: Records of all earlier candidates, of which the first is the baseline.
      recipe: All fields of the recipe.
      generation: Number of the generation, from 1.
      seed: Seed of the campaign.
      population: Number of children.
      parents: Number of survivors that may become parents.
      tournament: Number of survivors that are drawn for each child.
      control_every: Number of children per control; 0 disables controls.

    Returns:
      Children of the generation.

    Raises:
      ExhaustedError: If no new child is found.
    """
    rng = np.random.default_rng([seed, generation])
    pool = survivors(records, parents)
    seen = {canonical(record.spec) for record in records}
    baseline = records[0]
    proposals = []
    for number in range(population):
        place = (generation - 1) * population + number + 1  # among all children, from 1
        name = f"g{generation:03d}c{number:02d}"
        if control_every and place % control_every == 0:
            parent = best_control(records)
            inherited = (parent and parent.recipe) or {}
            changed, change = mutate_recipe(recipe | inherited, rng)
            overrides = inherited | changed
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
    """Returns the records of a finished generation with their status and Pareto flag.

    Args:
      earlier: Records of the earlier generations.
      fresh: Records of the finished generation.
      parents: Number of survivors.

    Returns:
      Records of the finished generation.
    """
    records = [*earlier, *fresh]
    kept = {record.id for record in survivors(records, parents)}
    if (control := best_control(records)) is not None:
        kept.add(control.id)
    front = set(pareto_front({record.id: record.merit for record in records}))

    def status(record: Record) -> str:
        if record.failure is not None:
            return "dead"
        if record.id == BASELINE_ID:
            return "baseline"
        return "survivor" if record.id in kept else "rejected"

    return [r._replace(status=status(r), pareto=r.id in front) for r in fresh]


def lineage(records: Sequence[Record], candidate: str) -> list[Record]:
    """Returns the ancestors of a candidate, beginning with the founder, and the candidate itself.

    Args:
      records: Records of a search.
      candidate: Id of the candidate.
    """
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
      values: All fields of the recipe, by name as in `configs.base.SETTINGS`.
      rng: Random number generator, which is advanced.

    Returns:
      (new values of the fields that changed, description of the change).
    """
    while True:
        operator = _RECIPE_OPERATORS[rng.integers(len(_RECIPE_OPERATORS))]
        changed = {name: _bounded(name, x) for name, x in operator(values, rng).items()}
        if any(values[name] != x for name, x in changed.items()):
            words = (f"recipe.{name} {values[name]:g} -> {x:g}" for name, x in changed.items())
            return changed, "; ".join(words)


def _spec_of(baseline: OptimizerSpec, overrides: Values) -> OptimizerSpec:
    """Returns the baseline's spec with those overrides that are fields of the spec."""
    fields = {name: x for name, x in overrides.items() if name not in Recipe._fields}
    return baseline._replace(**fields)
