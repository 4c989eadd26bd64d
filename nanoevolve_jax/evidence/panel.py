"""A panel of specs known to be good or bad, which the evaluation must separate (win level 1)."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.evidence.statistics import auc, kendall_tau
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.policy.spec import CLIP_UPDATE_RMS, DECAY_DECOUPLED, FIELDS

AGREEMENT = 0.5  # least tau of a reproducible ranking, in which 3 of 4 pairs agree
AS_WELL = 0.9  # least share of the full horizon's tau; 1 would reject half of all equal horizons


def _memory(beta: float, factor: float) -> float:
    """Returns a decay rate whose memory length `1 / (1 - beta)` is `factor` times as long."""
    return 1.0 - (1.0 - beta) / factor


def good_and_bad(baseline: Candidate) -> tuple[dict[str, Candidate], dict[str, Candidate]]:
    """Returns small changes to the baseline, and changes that are known to be harmful.

    Args:
      baseline: Baseline with its recipe.

    Returns:
      (good candidates by name, bad candidates by name).
    """
    spec, recipe = baseline.spec, baseline.recipe

    def changed(**fields):
        return Candidate(spec._replace(**fields), recipe)

    good = {
        "baseline": baseline,
        "multiplier x0.9": changed(update_multiplier=0.9 * spec.update_multiplier),
        "multiplier x1.1": changed(update_multiplier=1.1 * spec.update_multiplier),
        "ns_steps 4": changed(ns_steps=4),
        "decoupled decay": changed(decay=DECAY_DECOUPLED),
        "momentum memory x0.8": changed(momentum=max(_memory(spec.momentum, 0.8), 0.0)),
        "second moment memory x0.8": changed(
            second_moment_beta=max(
                _memory(spec.second_moment_beta, 0.8), FIELDS["second_moment_beta"].low
            )
        ),
    }
    bad = {
        "no orthogonalisation": changed(orthogonalize=0),
        "ns_steps 1": changed(ns_steps=1),
        "multiplier x4": changed(update_multiplier=4.0 * spec.update_multiplier),
        "multiplier x0.1": changed(update_multiplier=0.1 * spec.update_multiplier),
        "decay x10": Candidate(spec, recipe._replace(weight_decay=10.0 * recipe.weight_decay)),
        "clip at its minimum": changed(
            clip=CLIP_UPDATE_RMS, clip_threshold=FIELDS["clip_threshold"].low
        ),
        "no momentum": changed(momentum=0.0),
    }
    return good, bad


class PanelRanking(NamedTuple):
    """The quality of the panel's ranking at a horizon."""

    auc: float  # probability that a good spec beats a bad one in single runs on the same seed
    tau_seeds: float  # mean of Kendall's tau between the rankings of two seeds
    tau_full: float  # mean of Kendall's tau with the full horizon on another seed


def judge_panel(
    horizons: Mapping[int, Mapping[str, np.ndarray]], good: set[str]
) -> dict[int, PanelRanking]:
    """Evaluates the ranking of the panel at each horizon.

    Args:
      horizons: Bits per byte by horizon in steps and by spec; float[seeds] each, NaN for failed
        runs.
      good: Names of the specs that are known to be good.

    Returns:
      Quality of the ranking by horizon in steps.
    """
    full = by_seed(horizons[max(horizons)])

    def judge(runs: Mapping[str, np.ndarray]) -> PanelRanking:
        is_good = np.array([name in good for name in runs])
        rankings = by_seed(runs)
        pairs = itertools.combinations(rankings, 2)
        across = itertools.permutations(range(len(rankings)), 2)
        return PanelRanking(
            auc=float(np.mean([auc(row[is_good], row[~is_good]) for row in rankings])),
            tau_seeds=float(np.mean([kendall_tau(a, b) for a, b in pairs])),
            tau_full=float(np.mean([kendall_tau(rankings[i], full[j]) for i, j in across])),
        )

    return {steps: judge(runs) for steps, runs in sorted(horizons.items())}


def by_seed(runs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the bpb of all specs on each seed; float[seeds, specs]."""
    return np.array(list(runs.values())).T


def shortest_horizon(panels: Mapping[int, PanelRanking]) -> int | None:
    """Returns the shortest horizon whose ranking is about as good as that of the full horizon.

    Its runs agree with full runs about as well as full runs agree with each other.

    Args:
      panels: Quality of the ranking by horizon in steps.

    Returns:
      Horizon in steps. None if full runs do not agree with each other, because there is then no
      ranking to reproduce.
    """
    own = panels[max(panels)].tau_seeds
    if own < AGREEMENT:
        return None
    return min(steps for steps, panel in panels.items() if panel.tau_full >= AS_WELL * own)
