"""Measures how often simulated campaigns end in a win, with the real decision code.

  python -m benchmarks.campaigns --out=results/campaigns.json

A campaign has five generations of eight candidates, screened on one seed. `tournament` picks
survivors and parents, `score` computes scores and promotes candidates in two rounds, and
`confirmation` tests at two looks. All quantities are in units of sigma, the standard deviation of
the baseline between seeds.

The bpb of a run is the sum of an effect of its seed, which all arms share, and its own noise. The
gain of a pair then has the standard deviation `paired`, which is about 1.4 for independent arms. In
a campaign with an effect, each child of a parent without the effect acquires it with probability
1/8, and descendants inherit it. Candidates do not differ in any other way.

The candidate must beat the baseline. It must also beat the best control if that control scored
above the baseline. All arms of a confirmation choose their learning rate from noisy runs, with the
real code. Each arm has its own best rate. At f times that rate, the loss of a run is higher by
`curvature * log2(f)^2`. On a flat curve, the chosen rate is far from the optimum but costs little.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags
from rich.table import Table

from benchmarks import options
from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.evidence.comparison import search_lr
from nanoevolve_jax.evidence.confirmation import (
    CONTINUE,
    WIN,
    ConfirmationRules,
    decide,
    decision_rank,
)
from nanoevolve_jax.evidence.score import (
    PromotionRules,
    Scale,
    first_round,
    pick,
    score,
    second_round,
)
from nanoevolve_jax.evolution.tournament import best_control, draw_parent, survivors
from nanoevolve_jax.terminal.console import Console

_NULL = flags.DEFINE_integer("null_campaigns", 10_000, "campaigns without an effect")
_WITH_EFFECT = flags.DEFINE_integer("campaigns", 2000, "campaigns with an effect")

PAIRED = (0.7, 1.0, 1.4)
EFFECTS = (0.5, 1.0, 1.5)
GENERATIONS, POPULATION, SURVIVORS, TOURNAMENT, CONTROL_EVERY = 5, 8, 4, 2, 8
ACQUIRED = 1 / 8
CURVATURES = (0.05, 0.25, 1.0)  # sigmas per squared octave of the learning rate
CURVATURE = 0.25
LR_SEEDS = SETTINGS["confirm.lr_seeds"].default


class Simulated(NamedTuple):
    """Candidate with its true effect and the fields that `tournament` reads."""

    id: str
    generation: int
    recipe: dict | None
    effect: float
    gains: list[float]
    score: float
    failure: None = None


class World(NamedTuple):
    """Distribution of the bpb of runs, in sigmas."""

    rng: np.random.Generator
    paired: float  # standard deviation of the gain of a pair
    curvature: float = CURVATURE  # curvature of the loss in log2 of the learning rate

    def run(self, effects: Sequence[float], seeds: int) -> np.ndarray:
        """Returns the bpb of arms on shared seeds, float[arms, seeds], relative to the baseline.

        Args:
          effects: True gain of each arm over the baseline, in sigmas.
          seeds: Number of seeds.
        """
        own = self.paired / math.sqrt(2.0)
        shared = math.sqrt(max(0.0, 1.0 - own**2)) * self.rng.standard_normal(seeds)
        noise = own * self.rng.standard_normal((len(effects), seeds))
        return shared + noise - np.asarray(effects)[:, None]

    def misset(self, arms: int) -> list[float]:
        """Returns the loss of each arm from choosing its learning rate by noisy runs, float[arms].

        Args:
          arms: Number of arms.
        """
        own = self.paired / math.sqrt(2.0)
        shared = math.sqrt(max(0.0, 1.0 - own**2)) * self.rng.standard_normal(LR_SEEDS)

        def lost() -> float:
            known: dict[float, np.ndarray] = {}

            def losses_of(factors):
                for factor in factors:
                    noise = shared + own * self.rng.standard_normal(LR_SEEDS)
                    known.setdefault(factor, noise + self.curvature * math.log2(factor) ** 2)
                return np.stack([known[factor] for factor in factors])

            fit, _, _ = search_lr(losses_of)
            return self.curvature * math.log2(fit.factor) ** 2

        return [lost() for _ in range(arms)]


def _score(gains: list[float], paired: float) -> float:
    return score(gains, 1.0, 1.0, Scale(1.0, paired**2, 0.0))


def _screen(world: World, effect: float) -> list[Simulated]:
    """Returns the baseline and all candidates of a campaign, screened on one seed."""
    own = world.paired / math.sqrt(2.0)
    baseline = own * world.rng.standard_normal()  # the effect of the seed cancels in a gain

    def tried(name, generation, recipe, truth):
        gain = float(baseline - own * world.rng.standard_normal() + truth)
        return Simulated(name, generation, recipe, truth, [gain], _score([gain], world.paired))

    known = [Simulated("baseline", 0, None, 0.0, [0.0], 0.0)]
    known += [tried(f"founder {i}", 0, None, 0.0) for i in range(2)]
    for generation in range(1, GENERATIONS + 1):
        pool = survivors(known, SURVIVORS)
        children = []
        for number in range(POPULATION):
            slot = (generation - 1) * POPULATION + number + 1
            name = f"g{generation}c{number}"
            if slot % CONTROL_EVERY == 0:
                children.append(tried(name, generation, {}, 0.0))
                continue
            parent = draw_parent(pool, world.rng, TOURNAMENT)
            acquired = not parent.effect and world.rng.random() < ACQUIRED
            children.append(tried(name, generation, None, effect if acquired else parent.effect))
        known += children
    return known


def run_campaign(
    world: World, effect: float, rules: ConfirmationRules, promotion: PromotionRules
) -> tuple[bool, bool]:
    """Simulates one campaign.

    Args:
      world: Distribution of runs.
      effect: Gain that candidates can acquire, in sigmas. 0 simulates a campaign without effect.
      rules: Rules of the confirmation.
      promotion: Rules of the promotion.

    Returns:
      Tuple of two booleans: whether the campaign ended in a win, and whether the confirmed
      candidate had the effect.
    """
    known = _screen(world, effect)
    control = best_control(known)
    by_id = {c.id: c for c in known if c.recipe is None and c.id != "baseline"}

    def train(names: list[str], seeds: int) -> None:
        bpb = world.run([0.0, *(by_id[name].effect for name in names)], seeds)
        for name, row in zip(names, bpb[1:], strict=True):
            gains = by_id[name].gains + (bpb[0] - row).tolist()
            by_id[name] = by_id[name]._replace(gains=gains, score=_score(gains, world.paired))

    def scores(names: Sequence[str]) -> dict[str, float]:
        return {name: by_id[name].score for name in names}

    entrants = first_round(scores(list(by_id)), promotion)
    train(entrants, promotion.first_seeds)
    finalists = second_round(scores(entrants), promotion)
    train(finalists, promotion.final_seeds)
    picked = by_id[pick(scores(finalists))]
    references = 1 + (control is not None and control.score > 0.0)
    *lost, own = world.misset(references + 1)
    bpb = world.run([*np.negative(lost), picked.effect - own], rules.seeds)
    for count in (rules.first_seeds, rules.seeds):
        *others, mine = bpb[:, :count]
        decision = min((decide(other, mine, 1.0, rules) for other in others), key=decision_rank)
        if decision.outcome != CONTINUE:
            break
    return decision.outcome == WIN, picked.effect > 0


class Rates(NamedTuple):
    """Counts and fractions over all campaigns of one cell."""

    campaigns: int  # number of campaigns
    wins: int  # number of campaigns that ended in a win
    win_rate: float  # fraction of campaigns that ended in a win
    tested_had_effect: float  # fraction of campaigns whose confirmed candidate had the effect


def simulate(
    effect: float,
    paired: float,
    campaigns: int,
    seed: int = 0,
    curvature: float = CURVATURE,
    rules: ConfirmationRules | None = None,
    promotion: PromotionRules | None = None,
) -> Rates:
    """Simulates many campaigns and returns their rates.

    Args:
      effect: Gain that candidates can acquire, in sigmas.
      paired: Standard deviation of the gain of a pair, in sigmas.
      campaigns: Number of campaigns.
      seed: Seed of the simulation.
      curvature: Curvature of the loss in log2 of the learning rate, in sigmas.
      rules: Rules of the confirmation, or None for the defaults.
      promotion: Rules of the promotion, or None for the defaults.
    """
    rules, promotion = rules or ConfirmationRules(), promotion or PromotionRules()
    rng = np.random.default_rng([seed, *(round(100 * x) for x in (paired, effect, curvature))])
    world = World(rng, paired, curvature)
    ends = [run_campaign(world, effect, rules, promotion) for _ in range(campaigns)]
    wins = sum(won for won, _ in ends)
    return Rates(campaigns, wins, wins / campaigns, sum(had for _, had in ends) / campaigns)


def main(argv: Sequence[str]) -> None:
    """Simulates all cells, prints a table and writes the results."""
    del argv
    table = Table(title="Campaigns that end in a win")
    for column in ("effect", "paired sd", "curvature", "campaigns", "wins", "rate", "carrier"):
        table.add_column(column, justify="right")
    cells = [(0.0, paired, curvature) for curvature in CURVATURES for paired in PAIRED]
    cells += [(effect, paired, CURVATURE) for effect in EFFECTS for paired in PAIRED]
    results = []
    for effect, paired, curvature in cells:
        count = _WITH_EFFECT.value if effect else _NULL.value
        rates = simulate(effect, paired, count, curvature=curvature)
        cell = {"effect": effect, "paired": paired, "curvature": curvature}
        results.append(cell | rates._asdict())
        table.add_row(
            *(f"{value:g}" for value in cell.values()),
            f"{rates.campaigns}",
            f"{rates.wins}",
            f"{rates.win_rate:.3f}",
            f"{rates.tested_had_effect:.3f}",
        )
    Console().print(table)
    options.write(
        {
            "command": "python -m benchmarks.campaigns",
            "confirmation": ConfirmationRules()._asdict(),
            "promotion": PromotionRules()._asdict(),
            "campaigns": results,
        }
    )


if __name__ == "__main__":
    app.run(main)
