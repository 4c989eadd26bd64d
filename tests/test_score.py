"""The score and the front compared with brute force, and promotion by score."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.evidence.score import (
    Merit,
    PromotionRules,
    Scale,
    best,
    first_round,
    instability,
    pareto_front,
    pick,
    score,
    second_round,
)

NUMBERS = st.floats(0.01, 100.0)
MERITS = st.builds(Merit, NUMBERS, NUMBERS, NUMBERS)
# Few values, so that ties and domination are common.
COARSE = st.builds(Merit, *[st.sampled_from([1.0, 2.0, 3.0])] * 3)
BAD = st.sampled_from([math.nan, math.inf, -math.inf])


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=40))
def test_instability_is_the_largest_rise_between_two_moments(losses):
    smooth = [
        0.9**t * losses[0] + sum(0.1 * 0.9 ** (t - k) * losses[k] for k in range(1, t + 1))
        for t in range(len(losses))
    ]
    rises = [b - a for i, a in enumerate(smooth) for b in smooth[i:]]
    assert instability(np.asarray(losses)) == pytest.approx(max(rises), abs=1e-9)


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=40))
def test_a_falling_loss_is_stable(losses):
    assert instability(np.asarray(sorted(losses, reverse=True))) == pytest.approx(0.0, abs=1e-12)


GAINS = st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=9)
SCALES = st.builds(Scale, st.floats(0.01, 2.0), st.floats(0.0, 4.0), st.floats(0.0, 1.0))


@given(GAINS, NUMBERS, NUMBERS, SCALES)
def test_score_is_the_shrunken_gain_less_what_the_compute_would_have_bought(
    gains, cost, baseline_cost, scale
):
    n = len(gains)
    expected = n / (n + scale.shrinkage) * np.mean(gains) / scale.sigma
    if cost > baseline_cost:
        more = math.log(cost) - math.log(baseline_cost)
        expected -= scale.horizon_slope * more / scale.sigma
    assert score(gains, cost, baseline_cost, scale) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(GAINS, NUMBERS, SCALES)
def test_repeating_the_same_evidence_moves_the_score_away_from_zero(gains, cost, scale):
    once, twice = (score(gains * k, cost, cost, scale) for k in (1, 2))
    assert abs(twice) >= abs(once) - 1e-12
    assert once * twice >= 0


@given(GAINS, NUMBERS, st.floats(0.1, 10.0), SCALES)
def test_cost_lowers_the_score_and_savings_do_not_raise_it(gains, cost, factor, scale):
    level = score(gains, cost, cost, scale)
    if factor > 1:
        assert score(gains, factor * cost, cost, scale) <= level
    else:
        assert score(gains, factor * cost, cost, scale) == level


@given(GAINS, NUMBERS, SCALES, BAD, st.integers(0, 9))
def test_one_run_that_is_not_finite_fails_the_candidate(gains, cost, scale, bad, place):
    gains.insert(place, bad)
    assert score(gains, cost, cost, scale) == -math.inf


def brute_force_front(merits):
    front = []
    for name, m in merits.items():
        dominators = [
            o
            for o in merits.values()
            if o.val_bpb <= m.val_bpb and o.cost <= m.cost and o.instability <= m.instability
            if o.val_bpb < m.val_bpb or o.cost < m.cost or o.instability < m.instability
        ]
        if not dominators:
            front.append(name)
    return front


POPULATIONS = st.lists(st.one_of(COARSE, MERITS), min_size=1, max_size=12)


@given(POPULATIONS)
def test_the_front_is_what_nothing_dominates(merits):
    named = {f"c{i}": merit for i, merit in enumerate(merits)}
    assert pareto_front(named) == brute_force_front(named)


@given(POPULATIONS, st.lists(st.tuples(st.integers(0, 2), BAD), max_size=4))
def test_the_dead_neither_enter_the_front_nor_push_others_off_it(merits, broken):
    alive = {f"c{i}": merit for i, merit in enumerate(merits)}
    dead = {}
    for i, (which, bad) in enumerate(broken):
        values = [0.0, 0.0, 0.0]  # would dominate all others
        values[which] = bad
        dead[f"d{i}"] = Merit(*values)
    assert pareto_front(dead | alive) == brute_force_front(alive)


@given(POPULATIONS)
def test_every_candidate_off_the_front_is_dominated_by_one_on_it(merits):
    named = {f"c{i}": merit for i, merit in enumerate(merits)}
    front = [named[name] for name in pareto_front(named)]
    for merit in merits:
        assert any(all(f <= m for f, m in zip(on, merit, strict=True)) for on in front)


def test_only_quality_cost_and_stability_are_objectives():
    assert Merit._fields == ("val_bpb", "cost", "instability")


# Promotion

SCORES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.floats(-5, 5) | st.just(-math.inf), max_size=20
)


@given(SCORES, st.integers(1, 25))
def test_the_best_are_those_no_one_left_out_beats(scores, count):
    chosen = best(scores, count)
    alive = [name for name, score in scores.items() if score > -math.inf]
    assert len(chosen) == min(count, len(alive))
    left = [scores[name] for name in alive if name not in chosen]
    assert all(scores[name] >= worse for name in chosen for worse in left)
    assert [scores[n] for n in chosen] == sorted((scores[n] for n in chosen), reverse=True)


def test_the_rounds_narrow_down_to_one():
    rules = PromotionRules(first=3, final=2)
    scores = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2}
    assert first_round(scores, rules) == ["b", "c", "d"]
    assert second_round({"b": 0.0, "c": 0.3, "d": 0.2}, rules) == ["c", "d"]
    assert pick({"c": 0.1, "d": 0.2}) == "d"


def test_nothing_is_picked_when_every_finalist_failed():
    assert pick({"a": -math.inf}) is None
    assert pick({}) is None
