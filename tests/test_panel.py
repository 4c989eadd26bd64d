"""The panel's statistics on known rankings."""

import numpy as np
import pytest

from nanoevolve_jax.evidence.panel import PanelRanking, judge_panel, shortest_horizon

GOOD = [f"good {i}" for i in range(5)]
BAD = [f"bad {i}" for i in range(5)]
TRUTH = dict(zip(GOOD + BAD, np.linspace(1.0, 2.0, 10), strict=True))


def runs(noise, seeds=4, seed=0):
    """Returns every spec's true bpb plus noise for each run."""
    rng = np.random.default_rng(seed)
    return {name: bpb + noise * rng.standard_normal(seeds) for name, bpb in TRUTH.items()}


def test_runs_without_noise_rank_perfectly():
    rankings = judge_panel({50: runs(0.0), 100: runs(0.0)}, set(GOOD))
    for panel in rankings.values():
        assert panel == pytest.approx((1.0, 1.0, 1.0))


def test_the_full_horizon_agrees_with_itself_as_its_seeds_do():
    """Both compare single runs, so a horizon as good as the full one meets the same standard."""
    rankings = judge_panel({50: runs(0.1), 100: runs(0.1, seed=1)}, set(GOOD))
    assert rankings[100].tau_full == pytest.approx(rankings[100].tau_seeds)
    assert rankings[50].tau_full == pytest.approx(rankings[100].tau_seeds, abs=0.1)


def test_a_failed_run_ranks_last():
    failing = runs(0.0) | {"bad 4": np.full(4, np.nan)}
    assert judge_panel({100: failing}, set(GOOD))[100].auc == 1.0


def panels(**full_taus):
    """Returns rankings by horizon; the last is the full horizon, with a tau of 0.8."""
    rankings = {int(k[1:]): PanelRanking(0.9, 0.7, tau) for k, tau in full_taus.items()}
    return rankings | {200: PanelRanking(0.9, 0.8, 0.8)}


def test_the_shortest_horizon_that_agrees_is_named():
    assert shortest_horizon(panels(h50=0.75, h100=0.78)) == 50
    assert shortest_horizon(panels(h50=0.5, h100=0.73)) == 100
    assert shortest_horizon(panels(h50=0.5, h100=0.7)) == 200


def test_none_is_named_where_the_full_horizon_does_not_agree_with_itself():
    noisy = {50: PanelRanking(0.8, 0.7, 0.4), 200: PanelRanking(0.8, 0.3, 0.3)}
    assert shortest_horizon(noisy) is None
