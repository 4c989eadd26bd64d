"""Eligibility of candidates: constraints, and policies that only retune the baseline."""

import math

import pytest
from benches import arm, lr_factor, make_bench

from nanoevolve_jax.evidence.eligibility import (
    STATE_LIMIT,
    Constraints,
    is_retuned_baseline,
    is_static,
    measure,
    without_still_gate,
)
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evolution.confirming import require_constraints
from nanoevolve_jax.policy.spec import ANNEALING, DECAY_NONE, NANOCHAT, TRUST_RATIO, set_field

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat", NANOCHAT)


# Constraints


def fragile(*fails_twice):
    """Returns a bench where these arms ('policy', 'baseline') fail at twice the learning rate."""

    def bpb_of(job):
        name = "policy" if job.candidate.spec.control.enabled else "baseline"
        return math.nan if name in fails_twice and lr_factor(bench, job) > 1.9 else 2.0

    bench = make_bench(bpb_of)
    return bench


@pytest.mark.parametrize(
    ("fails", "broken"),
    [((), False), (("policy",), True), (("policy", "baseline"), False), (("baseline",), False)],
)
def test_a_candidate_must_survive_twice_the_learning_rate_if_the_baseline_does(fails, broken):
    bench = fragile(*fails)
    reason = measure(bench, BASELINE, [POLICY], "promote").broken("candidate")
    jobs = bench.runs.of("promote")
    assert [(j.seed, j.fold, j.steps) for j in jobs] == [
        (bench.lr_seeds()[0], 1, bench.config.train.steps)
    ] * 2
    assert [lr_factor(bench, job) for job in jobs] == pytest.approx([2, 2])
    assert (reason is not None) == broken
    if broken:
        assert "at twice the learning rate" in reason and "loss is not finite" in reason
        with pytest.raises(EvidenceError, match="'candidate': at twice") as error:
            require_constraints(bench, BASELINE, POLICY)
        assert "\n" not in str(error.value)
    else:
        require_constraints(bench, BASELINE, POLICY)


def test_a_state_above_the_limit_is_refused_and_the_gates_own_is_below():
    measured = measure(fragile(), BASELINE, [POLICY], "promote")
    ratio = measured.state_bytes_over_nanochat["candidate"]
    assert 1.0 < ratio <= STATE_LIMIT and measured.broken("candidate") is None
    large = Constraints("b", {"b": None, "c": None}, {"c": 1.06})
    assert "1.060 times NanoChat's" in large.broken("c")


# Retuned baselines


def with_poles(spec, poles=("aggressive", "conservative"), **values):
    """Returns the spec with these actuator values at these poles."""
    for pole in poles:
        for name, value in values.items():
            spec = set_field(spec, f"control.{pole}.{name}", value)
    return spec


STILL = ANNEALING._replace(
    control=ANNEALING.control._replace(aggressive=ANNEALING.control.conservative)
)
# This gate stays at the baseline's own actuators, except for its multiplier.
CONSTANT = with_poles(STILL, trust_ratio_mix=0.0, clip_threshold=1.0)
# The poles of this gate differ only in unused values, because trust ratio and clipping are off.
DEAD_POLES = with_poles(ANNEALING, update_multiplier=1.1, second_moment_beta=0.9)
# A gate that reads no sensor stays between its poles.
BLIND = set_field(ANNEALING, "control.coefficients.step_fraction", 0.0)


@pytest.mark.parametrize(
    "spec",
    [
        *(NANOCHAT, CONSTANT, DEAD_POLES, BLIND),
        NANOCHAT._replace(update_multiplier=1.3),
        NANOCHAT._replace(momentum=0.9, second_moment_beta=0.95),
        NANOCHAT._replace(trust_ratio_max=50.0),  # not read
        NANOCHAT._replace(decay=DECAY_NONE),  # equals a recipe with weight_decay=0
        NANOCHAT._replace(decay=DECAY_NONE, momentum=0.9),
    ],
)
def test_recipe_fields_and_the_multiplier_do_not_make_a_new_policy(spec):
    assert is_retuned_baseline(spec, NANOCHAT)


@pytest.mark.parametrize(
    ("spec", "baseline"),
    [
        *((TRUST_RATIO, NANOCHAT), (ANNEALING, NANOCHAT)),
        *((NANOCHAT._replace(**{k: v}), NANOCHAT) for k, v in (("ns_steps", 4), ("decay", 1))),
        (NANOCHAT._replace(decay=1), NANOCHAT._replace(decay=DECAY_NONE)),
    ],
)
def test_anything_else_does(spec, baseline):
    assert not is_retuned_baseline(spec, baseline)


def test_the_baseline_itself_may_be_tuned():
    tuned = NANOCHAT._replace(momentum=0.92, second_moment_beta=0.97)
    assert is_retuned_baseline(NANOCHAT, tuned)
    assert not is_retuned_baseline(tuned._replace(ns_steps=3), tuned)


@pytest.mark.parametrize(
    "mixed",
    [
        with_poles(CONSTANT, orthogonal_mix=0.5),  # the same partial mix at both poles
        with_poles(BLIND, ("aggressive",), orthogonal_mix=0.0),  # constant, between 0 and 1
    ],
)
def test_a_partial_mix_keeps_its_gate_because_a_recipe_cannot_express_it(mixed):
    assert without_still_gate(mixed) == mixed
    assert not is_retuned_baseline(mixed, NANOCHAT)


@pytest.mark.parametrize("pole", ["aggressive", "conservative"])
def test_a_difference_at_either_pole_is_noticed(pole):
    moved = with_poles(CONSTANT, (pole,), orthogonal_mix=0.5)
    assert not is_retuned_baseline(moved, NANOCHAT)


def test_a_gate_that_senses_nothing_stays_where_its_bias_puts_it():
    """sigmoid(4 * -0.5) is 0.119, so the result is near the aggressive pole, 1.2."""
    fixed = without_still_gate(BLIND)
    assert not fixed.control.enabled
    assert fixed.update_multiplier == pytest.approx(1.2 - 0.4 * 0.1192, abs=1e-4)


def test_static_policies_have_no_gate_that_moves_anything():
    assert all(map(is_static, (NANOCHAT, STILL, BLIND, CONSTANT)))
    assert not is_static(ANNEALING)
