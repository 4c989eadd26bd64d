"""Specs known to be good and bad: does the evaluator tell them apart (Win 1)?"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.evidence.statistics import auc, kendall_tau
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.policy.spec import CLIP_UPDATE_RMS, DECAY_DECOUPLED, FIELDS

AGREEMENT = 0.5  # least Kendall's tau of a ranking that can be repeated: 3 pairs of 4 in order
AS_WELL = 0.9  # of the full horizon's own tau; all of it would fail an equal one half of the time


def _memory(beta: float, factor: float) -> float:
    """A decay whose memory `1 / (1 - beta)` is `factor` times as long."""
    return 1.0 - (1.0 - beta) / factor


def good_and_bad(baseline: Candidate) -> tuple[dict[str, Candidate], dict[str, Candidate]]:
    """Small changes that should hardly matter, and changes the field knows to hurt."""
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


class Panel(NamedTuple):
    """How well runs of one horizon rank the panel."""

    auc: float  # that one run of a good spec beats one run of a bad spec on the same seed
    tau_seeds: float  # Kendall's tau between the rankings of two seeds, mean over pairs
    tau_full: float  # between a run and one of the full horizon on another seed, likewise


def judge_panel(
    horizons: Mapping[int, Mapping[str, np.ndarray]], good: set[str]
) -> dict[int, Panel]:
    """Reads a panel's runs.

    Args:
      horizons: by horizon in steps, the bpb of every spec, float[seeds]; NaN where it failed.
      good: names of the specs known to be good.
    """
    full = by_seed(horizons[max(horizons)])

    def judge(runs: Mapping[str, np.ndarray]) -> Panel:
        is_good = np.array([name in good for name in runs])
        rankings = by_seed(runs)
        pairs = itertools.combinations(rankings, 2)
        across = itertools.permutations(range(len(rankings)), 2)
        return Panel(
            auc=float(np.mean([auc(row[is_good], row[~is_good]) for row in rankings])),
            tau_seeds=float(np.mean([kendall_tau(a, b) for a, b in pairs])),
            tau_full=float(np.mean([kendall_tau(rankings[i], full[j]) for i, j in across])),
        )

    return {steps: judge(runs) for steps, runs in sorted(horizons.items())}


def by_seed(runs: Mapping[str, np.ndarray]) -> np.ndarray:
    """One row of bpb for every seed, float[seeds, specs]."""
    return np.array(list(runs.values())).T


def shortest_horizon(panels: Mapping[int, Panel]) -> int | None:
    """The shortest horizon whose runs agree with full ones about as well as those among themselves.

    None if runs of the full horizon do not agree with each other: then there is no ranking that a
    shorter one could have.
    """
    own = panels[max(panels)].tau_seeds
    if own < AGREEMENT:
        return None
    return min(steps for steps, panel in panels.items() if panel.tau_full >= AS_WELL * own)
