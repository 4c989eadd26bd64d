"""The score and the front against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.evidence.score import Merit, instability, pareto_front, score

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


@given(MERITS, MERITS, st.floats(0, 10), st.floats(0, 10))
def test_score_is_the_gain_less_the_price_of_cost_and_instability(merit, baseline, dear, shaky):
    expected = baseline.val_bpb - merit.val_bpb
    if merit.cost > baseline.cost:
        expected -= dear * (math.log(merit.cost) - math.log(baseline.cost))
    if merit.instability > baseline.instability:
        expected -= shaky * (merit.instability - baseline.instability)
    actual = score(merit, baseline, cost_weight=dear, stability_weight=shaky)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(MERITS, st.floats(0, 10), st.floats(0, 10))
def test_the_baseline_scores_zero(merit, dear, shaky):
    assert score(merit, merit, cost_weight=dear, stability_weight=shaky) == 0.0


@given(MERITS, MERITS, st.integers(0, 2), st.floats(0.0, 5.0))
def test_score_never_rises_when_an_objective_gets_worse(merit, baseline, which, more):
    worse = list(merit)
    worse[which] += more
    weights = {"cost_weight": 0.05, "stability_weight": 0.05}
    assert score(Merit(*worse), baseline, **weights) <= score(merit, baseline, **weights)


@given(MERITS, MERITS, st.integers(0, 2), BAD)
def test_what_is_not_finite_scores_below_everything(merit, baseline, which, bad):
    broken = list(merit)
    broken[which] = bad
    weights = {"cost_weight": 0.05, "stability_weight": 0.05}
    assert score(Merit(*broken), baseline, **weights) == -math.inf


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
        values = [0.0, 0.0, 0.0]  # would dominate everything
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
