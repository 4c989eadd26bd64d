"""When a policy is only the baseline with other numbers."""

import pytest

from nanoevolve_jax.evidence.eligibility import is_retuned_baseline, is_static, without_still_gate
from nanoevolve_jax.policy.spec import ANNEALING, DECAY_NONE, NANOCHAT, TRUST_RATIO, set_field

STILL = ANNEALING._replace(
    control=ANNEALING.control._replace(aggressive=ANNEALING.control.conservative)
)
# A gate that stands still at the baseline's own actuators, but for its multiplier.
CONSTANT = STILL
for pole in ("aggressive", "conservative"):
    for name, value in (("trust_ratio_mix", 0.0), ("clip_threshold", 1.0)):
        CONSTANT = set_field(CONSTANT, f"control.{pole}.{name}", value)
# A gate whose poles differ only where nothing reads them: no trust ratio, no clipping.
DEAD_POLES = ANNEALING
for name in ("update_multiplier", "second_moment_beta"):
    DEAD_POLES = set_field(DEAD_POLES, f"control.conservative.{name}", 1.1 if "up" in name else 0.9)
    DEAD_POLES = set_field(DEAD_POLES, f"control.aggressive.{name}", 1.1 if "up" in name else 0.9)
# A gate that senses nothing stands still between its poles.
BLIND = set_field(ANNEALING, "control.coefficients.step_fraction", 0.0)


@pytest.mark.parametrize(
    "spec",
    [
        NANOCHAT,
        NANOCHAT._replace(update_multiplier=1.3),
        NANOCHAT._replace(momentum=0.9, second_moment_beta=0.95),
        NANOCHAT._replace(trust_ratio_max=50.0),  # nothing reads it
        NANOCHAT._replace(decay=DECAY_NONE),  # a recipe's weight_decay of 0
        NANOCHAT._replace(decay=DECAY_NONE, momentum=0.9),
        CONSTANT,
        DEAD_POLES,
        BLIND,
    ],
)
def test_recipe_fields_and_the_multiplier_make_no_new_policy(spec):
    assert is_retuned_baseline(spec, NANOCHAT)


@pytest.mark.parametrize(
    "spec",
    [TRUST_RATIO, ANNEALING, NANOCHAT._replace(ns_steps=4), NANOCHAT._replace(decay=1)],
)
def test_anything_else_does(spec):
    assert not is_retuned_baseline(spec, NANOCHAT)


def test_the_baseline_itself_may_be_tuned():
    tuned = NANOCHAT._replace(momentum=0.92, second_moment_beta=0.97)
    assert is_retuned_baseline(NANOCHAT, tuned)
    assert not is_retuned_baseline(tuned._replace(ns_steps=3), tuned)


def test_a_partial_mix_keeps_its_gate():
    for pole in ("aggressive", "conservative"):
        partial = set_field(CONSTANT, f"control.{pole}.orthogonal_mix", 0.5)
    partial = set_field(partial, "control.aggressive.orthogonal_mix", 0.5)
    assert without_still_gate(partial) == partial
    assert not is_retuned_baseline(partial, NANOCHAT)


def test_a_gate_that_senses_nothing_stands_where_its_bias_puts_it():
    """sigmoid(4 * -0.5) is 0.119: nearer to the aggressive pole, 1.2, than to 0.8."""
    found = without_still_gate(BLIND)
    assert not found.control.enabled
    assert found.update_multiplier == pytest.approx(1.2 - 0.4 * 0.1192, abs=1e-4)


def test_a_blind_gate_between_a_mix_of_0_and_1_is_a_policy_of_its_own():
    """Half an orthogonal factor is nothing that the baseline's recipe can say."""
    mixed = set_field(BLIND, "control.aggressive.orthogonal_mix", 0.0)
    assert without_still_gate(mixed) == mixed
    assert not is_retuned_baseline(mixed, NANOCHAT)


def test_decay_is_no_part_of_the_recipe_but_for_its_absence():
    coupled = NANOCHAT._replace(decay=DECAY_NONE)
    assert not is_retuned_baseline(NANOCHAT._replace(decay=1), coupled)


def test_static_policies_have_no_gate_that_moves_anything():
    assert is_static(NANOCHAT) and is_static(STILL)
    assert is_static(set_field(ANNEALING, "control.coefficients.step_fraction", 0.0))
    assert not is_static(ANNEALING)
