"""False and true wins of simulated campaigns, decided by the real code."""

import pytest
from scipy import stats

from benchmarks.campaigns import simulate
from nanoevolve_jax.evidence.confirmation import ConfirmationRules

NULLS = 400


def test_campaigns_without_an_effect_seldom_end_in_a_win():
    """At a true rate of 5 %, more than 35 wins in 400 have a probability of one in two thousand."""
    limit = stats.binom.isf(0.0005, NULLS, 0.05)
    assert simulate(0.0, 1.4, NULLS, seed=11).wins <= limit


def test_an_effect_of_one_sigma_is_found_and_it_is_what_was_tested():
    rates = simulate(1.0, 1.0, 60, seed=11)
    assert rates.win_rate >= 0.8
    assert rates.tested_had_effect >= rates.win_rate


def test_rules_without_a_second_thought_would_be_caught():
    """Careless rules exceed the limit of the test above."""
    careless = ConfirmationRules(first_p=0.2, p=0.2, min_gain=0.0)
    rates = simulate(0.0, 1.4, NULLS, seed=11, rules=careless)
    assert rates.wins > stats.binom.isf(0.0005, NULLS, 0.05)


@pytest.mark.parametrize("paired", [0.7, 1.4])
def test_campaigns_are_a_function_of_their_seed(paired):
    assert simulate(1.0, paired, 5, seed=1) == simulate(1.0, paired, 5, seed=1)
