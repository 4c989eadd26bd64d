"""The decision rule at its two looks, and its power compared with simulated decisions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nanoevolve_jax.evidence.confirmation import (
    CONTINUE,
    NULL,
    WIN,
    ConfirmationRules,
    decide,
    minimum_detectable_effect,
    power,
)
from nanoevolve_jax.evidence.errors import EvidenceError

RULES = ConfirmationRules()
SIGMA = 0.01


def pairs(n, gain, spread=0.005, seed=0):
    """Returns the results of baseline and candidate with exactly this mean gain."""
    rng = np.random.default_rng(seed)
    baseline = 2.0 + rng.normal(0, SIGMA, n)
    noise = rng.normal(0, 1, n)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    return baseline, baseline - gain - spread * noise


def outcome(n, gain, rules=RULES, **noise):
    return decide(*pairs(n, gain, **noise), SIGMA, rules).outcome


def test_a_large_gain_wins_at_the_first_look():
    assert outcome(8, 0.01) == WIN


def test_a_mean_that_is_not_positive_stops():
    assert outcome(8, 0.0) == NULL
    assert outcome(8, -0.01) == NULL


def test_a_gain_too_uncertain_goes_on_and_ends():
    assert outcome(8, 0.006, spread=0.01) == CONTINUE
    assert outcome(20, 0.002, spread=0.01) == NULL
    assert outcome(20, 0.006, spread=0.01) == WIN


def test_a_certain_but_small_gain_is_no_win():
    assert outcome(8, 0.0049, spread=0.0001) == CONTINUE
    decision = decide(*pairs(20, 0.0049, spread=0.0001), SIGMA, RULES)
    assert decision.outcome == NULL and "0.49 sigma" in decision.reason


def test_a_bad_worst_run_is_no_win():
    baseline = np.full(20, 2.0) + np.linspace(0, 0.001, 20)
    candidate = baseline - 0.05 + np.linspace(0, 0.001, 20) ** 2
    assert decide(baseline, candidate, SIGMA, RULES).outcome == WIN
    candidate[3] = baseline.max() + 2.1 * SIGMA
    decision = decide(baseline, candidate, SIGMA, RULES)
    assert decision.test.p < 0.04 and decision.outcome == NULL
    assert "worst" in decision.reason


def test_a_failed_run_fails_the_candidate_and_names_the_pair():
    baseline, candidate = pairs(8, 0.05)
    candidate[4] = math.nan
    decision = decide(baseline, candidate, SIGMA, RULES)
    assert decision.outcome == NULL and "pair 5" in decision.reason
    with pytest.raises(EvidenceError, match="the baseline's run on pair 5 failed"):
        decide(candidate, baseline, SIGMA, RULES)


def test_other_numbers_of_pairs_are_no_looks():
    with pytest.raises(ValueError, match="must be 8 or 20, got 12"):
        decide(*pairs(12, 0.01), SIGMA, RULES)


def test_identical_arms_never_win():
    baseline, _ = pairs(20, 0.0)
    assert decide(baseline, baseline, SIGMA, RULES).outcome == NULL


def outcome_at(p, n, confirmations=1):
    """Returns the decision for pairs whose test has exactly this p; the gain is one sigma."""
    spread = SIGMA * math.sqrt(n) / stats.t.isf(p, n - 1)
    rules = RULES._replace(confirmations=confirmations)
    decision = decide(*pairs(n, SIGMA, spread=spread), SIGMA, rules)
    assert decision.test.p == pytest.approx(p)
    return decision.outcome


@pytest.mark.parametrize(
    ("p", "n", "expected"),
    [(0.0099, 8, WIN), (0.02, 8, CONTINUE), (0.039, 20, WIN), (0.041, 20, NULL)],
)
def test_each_look_has_its_own_limit(p, n, expected):
    assert outcome_at(p, n) == expected


@pytest.mark.parametrize(
    ("p", "n", "expected"),
    [(0.004, 8, WIN), (0.008, 8, CONTINUE), (0.019, 20, WIN), (0.021, 20, NULL)],
)
def test_two_confirmations_halve_both_limits(p, n, expected):
    assert outcome_at(p, n, confirmations=2) == expected


@given(st.integers(1, 32), st.sampled_from([(8, 0.01), (20, 0.04)]), st.floats(0.1, 0.95))
def test_confirmations_that_count_divide_the_limits(count, look, share):
    n, limit = look
    assert outcome_at(share * limit / count, n, count) == WIN
    assert outcome_at(limit / count / share, n, count) != WIN


@given(
    st.floats(-0.01, 0.03).filter(lambda gain: min(abs(gain), abs(gain - 0.005)) > 1e-6),
    st.sampled_from([8, 20]),
    st.floats(0.1, 10),
)
def test_the_decision_does_not_depend_on_the_unit(gain, n, unit):
    arms = pairs(n, gain)
    scaled = decide(arms[0] * unit, arms[1] * unit, SIGMA * unit, RULES)
    assert scaled.outcome == decide(*arms, SIGMA, RULES).outcome


def simulate(effect, paired_sigma, campaigns, seed):
    """Returns the win rate of the real decision on arms with independent noise."""
    rng = np.random.default_rng(seed)
    wins = 0
    for _ in range(campaigns):
        candidate = 10.0 + rng.normal(0, 1, RULES.seeds)
        baseline = candidate + effect + rng.normal(0, paired_sigma, RULES.seeds)
        lenient = RULES._replace(worst=math.inf)
        for n in (RULES.first_seeds, RULES.seeds):
            result = decide(baseline[:n], candidate[:n], 1.0, lenient).outcome
            if result != CONTINUE:
                break
        wins += result == WIN
    return wins / campaigns


@pytest.mark.parametrize("effect", [0.0, 0.7, 1.0])
def test_power_is_what_the_decision_does(effect):
    simulated = simulate(effect, 1.0, 300, seed=3)
    assert power(effect, 1.0, RULES) == pytest.approx(simulated, abs=0.055)


def test_power_grows_with_the_effect_and_falls_with_noise():
    assert power(0.5, 1.0, RULES) < power(1.0, 1.0, RULES) < power(1.5, 1.0, RULES)
    assert power(1.0, 1.4, RULES) < power(1.0, 1.0, RULES) < power(1.0, 0.7, RULES)


def test_power_falls_with_the_confirmations_that_count():
    assert power(0.7, 1.0, RULES._replace(confirmations=4)) < power(0.7, 1.0, RULES) - 0.05


def test_the_minimum_detectable_effect_has_the_power_it_names():
    effect = minimum_detectable_effect(1.0, RULES)
    assert power(effect, 1.0, RULES) >= 0.8 > power(effect - 0.05, 1.0, RULES)
