"""What the next proposal asks for: an island, a slot, a parent, and who else is shown.

Pure functions of what is settled and a generator seeded from (seed, number), so that a controller
that is killed and started again asks for the same. A proposal knows of those at least a window
before it alone: that is what lets a window of them be under way at once without the order in which
answers come in changing anything.
"""

from typing import NamedTuple

import numpy as np

from nanoevolve_jax.codegen.campaign.state import State, origin
from nanoevolve_jax.evolution.proposals import CANDIDATE
from nanoevolve_jax.evolution.tournament import best_first, draw_parent
from nanoevolve_jax.policy.slots import is_read

_STREAM = 6  # of random numbers, beside those of a search's generations
_SHOWN = 2  # best candidates beside the parent


class Rules(NamedTuple):
    """How parents are drawn."""

    seed: int  # of the campaign
    islands: int
    migrate: int  # one proposal in so many of an island has a parent from the next one
    slots: tuple[str, ...]  # that may be rewritten
    parents: int  # best candidates of an island that may have children
    tournament: int  # of them drawn for each child; the best is taken


class Aim(NamedTuple):
    """What a proposal asks for."""

    number: int
    island: int
    slot: str
    parent: str  # id
    shown: tuple[str, ...]  # ids of other good candidates, that of its island first


def island_of(number: int, islands: int) -> int:
    """The island of a proposal."""
    return number % islands


def aim(number: int, known: State, rules: Rules) -> Aim:
    """What a proposal asks for.

    Args:
      number: of the proposal, from 0 on.
      known: what it may know of; founders are at home on every island.
      rules: of the campaign.
    """
    rng = np.random.default_rng([rules.seed, _STREAM, number])
    island = island_of(number, rules.islands)
    slot = rules.slots[rng.integers(len(rules.slots))]
    turn = number // rules.islands
    migrates = rules.migrate and turn % rules.migrate == rules.migrate - 1
    home = (island + 1) % rules.islands if migrates else island
    at_home = {e.candidate for e in known.entries if e.island == home and e.outcome == CANDIDATE}
    pool = [r for r in known.records if r.generation == 0 or origin(r.id) in at_home]
    # A gate that nobody reads cannot be told better from worse.
    usable = [record for record in pool if record.recipe is None and is_read(slot, record.spec)]
    ranked = best_first(usable)[: rules.parents]
    parent = draw_parent(ranked, rng, rules.tournament)
    # The best of its own island, and of all: who leads everywhere is not all that an island sees.
    own, everyone = (
        [record.id for record in best_first(some) if record.code and record.id != parent.id]
        for some in (pool, known.records)
    )
    shown = tuple(dict.fromkeys([*own[:1], *everyone]))[:_SHOWN]
    return Aim(number, island, slot, parent.id, shown)
