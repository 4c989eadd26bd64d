"""The bandit prefers the largest gain per cost, forgets old outcomes, and is deterministic."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.codegen.mutators.bandit import (
    DOLLARS_PER_TOKEN,
    FIRST_REST,
    LONGEST_REST,
    PATIENCE,
    Outcome,
    chances,
    choose,
    cost,
    history_of,
    set_aside,
)
from nanoevolve_jax.evolution.proposals import CANDIDATE, FAILED, REFUSED, Entry

NAMES = ("dear", "cheap", "poor")
outcomes = st.builds(
    Outcome,
    st.sampled_from(NAMES),
    st.floats(-2.0, 2.0),
    st.floats(0.0, 5.0),
    st.floats(0.0, 900.0),
    st.booleans(),
)


def campaign(rounds: int, draw, seed: int = 0) -> list[Outcome]:
    """Returns a history of chosen providers; `draw(rng, name, round)` gives one outcome."""
    rng, history = np.random.default_rng(seed), []
    for count in range(rounds):
        name = choose(NAMES, history, [seed, count])
        history.append(draw(rng, name, count))
    return history


def test_gain_per_cost_decides_and_not_gain():
    def draw(rng, name, count):
        chance, dollars = {"dear": (0.5, 1.0), "cheap": (0.3, 0.1), "poor": (0.0, 0.1)}[name]
        return Outcome(name, float(rng.random() < chance), dollars, 1.0, False)

    for seed in range(5):
        counts = Counter(o.provider for o in campaign(150, draw, seed)[50:])
        assert counts["cheap"] > 70, counts
    assert chances(NAMES, campaign(150, draw))["cheap"] > 0.7


def test_changes_are_noticed():
    def draw(rng, name, count):
        chance = {"dear": 0.0, "cheap": 0.6 * (count < 100), "poor": 0.6 * (count >= 100)}[name]
        return Outcome(name, float(rng.random() < chance), 0.1, 1.0, False)

    history = campaign(300, draw)
    late = Counter(o.provider for o in history[220:])
    assert late["poor"] > 50, late


def test_a_free_provider_costs_its_tokens():
    assert cost(Outcome("a", 0.0, 0.0, 50_000, False)) == pytest.approx(50_000 * DOLLARS_PER_TOKEN)
    assert cost(Outcome("a", 0.0, 0.5, 10.0, False)) == 0.5
    assert cost(Outcome("a", 0.0, 0.0, 0.0, False)) > 0

    def draw(rng, name, count):
        tokens = {"dear": 300_000, "cheap": 10_000, "poor": 300_000}[name]
        return Outcome(name, float(rng.random() < 0.4), 0.0, tokens, False)

    assert chances(NAMES, campaign(120, draw))["cheap"] > 0.9


def test_at_first_all_providers_have_the_same_chance():
    assert all(abs(chance - 1 / 3) < 0.05 for chance in chances(NAMES, []).values())


@given(st.lists(outcomes, max_size=40), st.integers(0, 2**32 - 1))
def test_a_choice_is_a_function_of_its_arguments_and_not_set_aside(history, seed):
    chosen = choose(NAMES, history, seed)
    assert chosen == choose(NAMES, list(history), seed)
    aside = set_aside(history)
    assert chosen in NAMES
    assert chosen not in aside or aside >= set(NAMES)
    odds = chances(NAMES, history)
    assert sum(odds.values()) == pytest.approx(1.0)
    assert all(odds[name] == 0.0 for name in aside) or aside >= set(NAMES)


def test_a_provider_that_keeps_failing_rests_longer_each_time_until_it_answers():
    fail, good = Outcome("poor", 0.0, 0.0, 1.0, True), Outcome("cheap", 0.0, 0.1, 1.0, False)
    history = [fail] * (PATIENCE - 1)
    assert not set_aside(history)
    for rest in (FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST):
        history.append(fail)
        for _ in range(rest):
            assert set_aside(history) == {"poor"}
            history.append(good)
        assert not set_aside(history)
    assert set_aside([fail] * 1000 + [good] * (LONGEST_REST - 1)) == {"poor"}
    assert not set_aside([fail] * 1000 + [good] * LONGEST_REST)
    assert not set_aside([*history, fail._replace(failed=False), fail])


def test_if_all_are_set_aside_the_one_that_rested_longest_is_asked():
    history = [Outcome(name, 0.0, 0.0, 1.0, True) for name in NAMES for _ in range(PATIENCE)]
    assert set_aside(history) >= {"cheap", "poor"}
    assert choose(("poor", "cheap"), history, 0) == "cheap"


def test_the_history_is_that_of_the_journal():
    def entry(number, outcome, gain):
        texts = dict.fromkeys(("candidate", "reason", "message"))
        tokens = {"calls": 1, "input_tokens": 5, "output_tokens": 6, "dollars": 0.5, "seconds": 2.0}
        where = {"number": number, "island": 0, "slot": "gate", "parent": "a", "provider": "dear"}
        return Entry(**where, **texts, **tokens, outcome=outcome, gain=gain)

    entries = [entry(0, CANDIDATE, 1.5), entry(1, REFUSED, 0.0), entry(2, FAILED, 0.0)]
    assert history_of(entries) == [
        Outcome("dear", 1.5, 0.5, 11, False),
        Outcome("dear", 0.0, 0.5, 11, False),
        Outcome("dear", 0.0, 0.5, 11, True),
    ]
