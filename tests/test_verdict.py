"""Labels: each built from arms in which one thing alone is true."""

import math

import numpy as np
import pytest

from nanoevolve_jax.evidence.verdict import (
    CONSTANTS,
    NOT_ASKED,
    NOT_CONFIRMED,
    RETUNED,
    REWRITTEN,
    SCHEDULE,
    SENSING,
    UNRESOLVED,
    best_constants,
    judge,
    step_share,
)

N = 20


def arm(mean, seed):
    """Runs around a mean, with little noise of their own and seeds shared by all arms."""
    shared = np.random.default_rng(0).normal(0, 0.02, N)
    return mean + shared + np.random.default_rng(seed).normal(0, 0.003, N)


def label(winner, schedule, constant, yoked=None, panel=None, built_in=None):
    """The verdict over a baseline at 2.0 bpb."""
    return judge(
        confirmed=True,
        baseline=arm(2.0, 1),
        winner=arm(winner, 2),
        schedule=arm(schedule, 3),
        constants={"gate 0.5": arm(constant, 4), "gate 0": arm(constant + 0.05, 5)},
        yoked=arm(schedule if yoked is None else yoked, 6),
        panel=panel,
        built_in=None if built_in is None else arm(built_in, 7),
    ).label


def test_what_beats_every_placebo_senses():
    assert label(winner=1.90, schedule=1.95, constant=1.96) == SENSING


def test_what_its_own_schedule_matches_is_a_schedule():
    assert label(winner=1.90, schedule=1.90, constant=1.96) == SCHEDULE


def test_what_a_constant_matches_is_constants():
    assert label(winner=1.90, schedule=1.90, constant=1.90) == CONSTANTS


def test_what_only_its_built_in_functions_do_not_match_is_its_rewritten_ones():
    assert label(winner=1.90, schedule=1.90, constant=1.90, built_in=2.0) == REWRITTEN
    assert label(winner=1.90, schedule=1.90, constant=1.90, built_in=1.90) == CONSTANTS
    assert label(winner=1.90, schedule=1.95, constant=1.96, built_in=2.0) == SENSING


def test_a_constant_that_only_ties_with_the_baseline_leaves_a_schedule():
    assert label(winner=1.95, schedule=1.95, constant=2.0) == SCHEDULE


def test_a_gain_that_no_placebo_keeps_but_another_seeds_trajectory_does_is_unresolved():
    assert label(winner=1.90, schedule=2.0, constant=2.0, yoked=1.90) == UNRESOLVED


def panel(winner, schedule, baseline):
    return {
        "winner": arm(winner, 7)[:12],
        "schedule": arm(schedule, 8)[:12],
        "baseline": arm(baseline, 9)[:12],
    }


def test_the_panel_finds_sensing_where_calm_runs_tie():
    assert label(1.90, 1.90, 1.96, panel=panel(2.0, 2.05, 2.05)) == SENSING


def test_winning_the_panel_while_losing_to_the_baseline_in_it_is_no_sensing():
    assert label(1.90, 1.90, 1.96, panel=panel(2.0, 2.05, 1.98)) == SCHEDULE


def test_without_a_win_nothing_else_is_read():
    assert judge(confirmed=False).label == NOT_CONFIRMED


def test_a_win_that_nothing_was_asked_about_releases_nothing():
    assert judge(confirmed=True) == (NOT_ASKED, None, {})


def test_a_retuned_baseline_comes_before_everything():
    assert judge(confirmed=True, retuned=True).label == RETUNED


def test_what_is_released_is_the_simplest_thing_that_wins():
    arms = {"baseline": arm(2.0, 1), "winner": arm(1.9, 2), "yoked": arm(1.9, 6)}
    constants = {"gate 0.5": arm(1.9, 4)}
    verdict = judge(confirmed=True, **arms, schedule=arm(1.9, 3), constants=constants)
    assert (verdict.label, verdict.release) == (CONSTANTS, "its best constants")


def test_a_failed_run_of_the_winner_counts_against_it_whatever_became_of_the_other_arm():
    winner, constant = arm(1.90, 2), arm(1.96, 4)
    winner[7] = constant[7] = math.nan
    verdict = judge(
        confirmed=True,
        baseline=arm(2.0, 1),
        winner=winner,
        schedule=arm(1.95, 3),
        constants={"gate 0.5": constant},
        yoked=arm(1.95, 6),
    )
    assert verdict.contrasts["winner over constants"].p == 1.0
    assert verdict.label == SCHEDULE  # which did not fail, and neither did the baseline
    assert verdict.contrasts["constants over baseline"].p == 1.0


def test_a_failed_run_of_a_placebo_is_no_evidence_for_the_winner():
    constant = arm(1.96, 4)
    constant[7] = math.nan
    arms = {"baseline": arm(2.0, 1), "winner": arm(1.9, 2), "yoked": arm(1.95, 6)}
    verdict = judge(confirmed=True, **arms, schedule=arm(1.95, 3), constants={"gate 0": constant})
    assert verdict.contrasts["winner over constants"].n == N - 1
    assert verdict.label == SENSING


def test_constants_with_a_failed_run_are_not_the_best():
    runs = {"a": np.array([1.0, math.nan]), "b": np.array([2.0, 2.0])}
    assert best_constants(runs) == "b"


def test_step_share_splits_variance_between_step_and_seed():
    schedule = np.linspace(0, 1, 50)
    seeds = np.random.default_rng(0).normal(0, 1, (8, 1))
    assert step_share(np.tile(schedule, (8, 1))) == pytest.approx(1.0)
    assert step_share(np.broadcast_to(seeds, (8, 50))) == pytest.approx(0.0, abs=1e-9)
    assert 0.0 < step_share(schedule + 0.3 * seeds) < 1.0
    assert step_share(np.full((8, 50), 0.5)) == 1.0
    failed = np.vstack([np.tile(schedule, (8, 1)), np.full((1, 50), math.nan)])
    assert step_share(failed) == pytest.approx(1.0)
