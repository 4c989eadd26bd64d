"""Verdict labels, each derived from arms for which a single explanation holds."""

import math

import numpy as np
import pytest

from nanoevolve_jax.evidence.verdict import (
    CONSTANTS,
    REWRITTEN,
    SCHEDULE,
    SENSING,
    UNRESOLVED,
    Panel,
    PlaceboEvidence,
    Unattributed,
    best_constants,
    judge,
    step_share,
)

N = 20


def arm(mean, seed, runs=N):
    """Returns runs around a mean, with noise that is mostly shared by all arms."""
    shared = np.random.default_rng(0).normal(0, 0.02, N)
    return (mean + shared + np.random.default_rng(seed).normal(0, 0.003, N))[:runs]


def evidence(winner=1.90, schedule=1.95, constant=1.96, yoked=None, built_in=None, panel=None):
    """Returns evidence for runs against a baseline at 2.0 bpb."""
    return PlaceboEvidence(
        baseline=arm(2.0, 1),
        winner=arm(winner, 2),
        constants={"gate 0.5": arm(constant, 4), "gate 0": arm(constant + 0.05, 5)},
        schedule=arm(schedule, 3),
        yoked=arm(schedule if yoked is None else yoked, 6),
        built_in=None if built_in is None else arm(built_in, 7),
        panel=panel and Panel(*(arm(mean, 7 + i, runs=12) for i, mean in enumerate(panel))),
    )


TIES = {"schedule": 1.90, "constant": 1.90}
CASES = {
    "it beats every placebo": ({}, SENSING),
    "its own schedule matches it": ({"schedule": 1.90}, SCHEDULE),
    "a constant matches it": (TIES, CONSTANTS),
    "only its built-in functions do not match it": (TIES | {"built_in": 2.0}, REWRITTEN),
    "its built-in functions match it too": (TIES | {"built_in": 1.90}, CONSTANTS),
    "it beats placebos and built-in functions": ({"built_in": 2.0}, SENSING),
    "constants tie with the baseline": (
        {"winner": 1.95, "schedule": 1.95, "constant": 2.0},
        SCHEDULE,
    ),
    "only another seed's trajectory matches it": (
        {"schedule": 2.0, "constant": 2.0, "yoked": 1.90},
        UNRESOLVED,
    ),
    "the panel shows sensing where calm runs tie": (
        {"schedule": 1.90, "panel": (2.0, 2.05, 2.05)},
        SENSING,
    ),
    "it wins the panel but loses to the baseline there": (
        {"schedule": 1.90, "panel": (2.0, 2.05, 1.98)},
        SCHEDULE,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_label_follows_from_what_matches_the_winner(case):
    means, label = CASES[case]
    assert judge(evidence(**means)).label == label


@pytest.mark.parametrize("reason", Unattributed)
def test_without_placebos_the_reason_is_the_label_and_nothing_is_released(reason):
    assert judge(reason) == (reason.value, None, {})


def test_the_simplest_thing_that_wins_is_released():
    assert judge(evidence(**TIES)).release == "its best constants"


def test_a_failed_run_of_the_winner_counts_against_it_even_if_the_other_arm_failed_too():
    runs = evidence()
    runs.winner[7] = runs.constants["gate 0.5"][7] = runs.constants["gate 0"][7] = math.nan
    verdict = judge(runs)
    assert verdict.contrasts["winner over constants"].p == 1.0
    assert verdict.contrasts["constants over baseline"].p == 1.0
    assert verdict.label == SCHEDULE  # neither the schedule nor the baseline failed


def test_a_failed_run_of_a_placebo_is_not_evidence_for_the_winner():
    runs = evidence()
    del runs.constants["gate 0"]
    runs.constants["gate 0.5"][7] = math.nan
    verdict = judge(runs)
    assert verdict.contrasts["winner over constants"].n == N - 1
    assert verdict.label == SENSING


def test_constants_with_a_failed_run_are_not_the_best():
    assert best_constants({"a": np.array([1.0, math.nan]), "b": np.array([2.0, 2.0])}) == "b"


def test_step_share_splits_variance_between_step_and_seed():
    schedule, seeds = np.linspace(0, 1, 50), np.random.default_rng(0).normal(0, 1, (8, 1))
    assert step_share(np.tile(schedule, (8, 1))) == pytest.approx(1.0)
    assert step_share(np.broadcast_to(seeds, (8, 50))) == pytest.approx(0.0, abs=1e-9)
    assert 0.0 < step_share(schedule + 0.3 * seeds) < 1.0
    assert step_share(np.full((8, 50), 0.5)) == 1.0
    failed = np.vstack([np.tile(schedule, (8, 1)), np.full((1, 50), math.nan)])
    assert step_share(failed) == pytest.approx(1.0)
