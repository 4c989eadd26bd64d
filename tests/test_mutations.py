"""The thirteen operators change one aspect each, stay within bounds, and repeat no policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import random_spec

from nanoevolve_jax.policy.canonical import canonical, unread_fields
from nanoevolve_jax.policy.mutations import (
    OPERATORS,
    ExhaustedError,
    changed_fields,
    describe_change,
    mutate,
)
from nanoevolve_jax.policy.spec import FIELDS, NANOCHAT, PRESETS, get_field, set_field
from nanoevolve_jax.policy.spec_json import spec_from_json, spec_to_json
from nanoevolve_jax.policy.transform import evolved_muon

ASPECTS = {
    "toggle_momentum_placement": "momentum_placement",
    "toggle_trust_ratio": "trust_ratio",
    "adjust_trust_ratio_clamp": "trust_ratio_m",
    "toggle_clip_policy": "clip",
    "toggle_decay_mode": "decay",
    "scale_update_multiplier": "update_multiplier",
    "adjust_ns_steps": "ns_steps",
    "adjust_second_moment_beta": "second_moment_beta",
    "toggle_stateful_control": "control.enabled",
    "adjust_gate_bias": "control.bias",
    "adjust_gate_weight": "control.coefficients.",
    "adjust_stateful_ema_beta": "control.ema_beta",
    "adjust_stateful_range": ("control.aggressive.", "control.conservative."),
}


def parents(count, seed=0):
    rng = np.random.default_rng(seed)
    return [*PRESETS.values(), *(random_spec(rng) for _ in range(count))]


def test_there_are_thirteen_operators():
    assert set(OPERATORS) == set(ASPECTS)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_changes_exactly_its_own_aspect_within_bounds(name):
    rng = np.random.default_rng(1)
    drawn = 0
    for parent in parents(100):
        try:
            child = mutate(parent, rng, set(), {name: OPERATORS[name]})
        except ExhaustedError:
            continue  # the parent does not read this aspect, so any child would be inert
        drawn += 1
        changed = changed_fields(parent, child.spec)
        assert len(changed) == 1
        assert changed[0].startswith(ASPECTS[name])
        assert spec_from_json(spec_to_json(child.spec)) == child.spec  # validates every bound
        assert child.operator == name
        assert changed[0] in child.change
    assert drawn >= 10


def test_no_child_is_a_duplicate_or_inert():
    rng = np.random.default_rng(2)
    family, seen = [NANOCHAT], {canonical(NANOCHAT)}
    for _ in range(500):
        child = mutate(family[rng.integers(len(family))], rng, seen).spec
        assert canonical(child) not in seen
        seen.add(canonical(child))
        family.append(child)


def test_an_exhausted_neighbourhood_is_an_error_and_not_a_hang():
    only = {"toggle_trust_ratio": OPERATORS["toggle_trust_ratio"]}
    child = mutate(NANOCHAT, np.random.default_rng(0), set(), only).spec
    with pytest.raises(ExhaustedError, match="toggle_trust_ratio"):
        mutate(NANOCHAT, np.random.default_rng(0), {canonical(child)}, only)


def test_the_change_is_told_in_words():
    child = set_field(NANOCHAT, "decay", 0)
    assert describe_change(NANOCHAT, child) == "decay cautious -> none"
    assert describe_change(NANOCHAT, NANOCHAT) == ""


def test_the_canonical_form_is_a_fixed_point():
    for spec in parents(300):
        assert canonical(canonical(spec)) == canonical(spec)


def make_trajectory():
    """Returns a compiled function from a spec to the parameters after six steps."""
    rng = np.random.default_rng(3)
    shapes = [(8, 8), (8, 24), (24, 8)]
    # Initial values are zero, ordinary and large, so that clamps take effect; NanoChat's
    # projections start at zero.
    start = [
        jnp.asarray(k * rng.normal(size=s), jnp.float32)
        for s, k in zip(shapes, [1.0, 0.0, 100.0], strict=True)
    ]
    # Gradients have a common part, growing norms, and spikes, so that every sensor moves.
    common = [rng.normal(size=s) for s in shapes]
    scales = [1.0, 0.7, 4.0, 0.5, 9.0, 0.2]
    gradients = [
        [
            jnp.asarray(k * (c + rng.normal(size=s)), jnp.float32)
            for c, s in zip(common, shapes, strict=True)
        ]
        for k in scales
    ]

    @jax.jit
    def trajectory(spec):
        optimizer = evolved_muon(spec, 0.1, total_steps=6, weight_decay=0.3)
        params, state = start, optimizer.init(start)
        for step, grads in enumerate(gradients):
            loss = 5.0 - 0.6 * step + 0.3 * (step % 2)
            updates, state = optimizer.update(grads, state, params, value=loss)
            params = optax.apply_updates(params, updates)
        return params

    def as_arrays(spec):
        return jax.tree.map(
            lambda like, x: np.asarray(x, np.int32 if isinstance(like, int) else np.float32),
            NANOCHAT,
            spec,
        )

    return lambda spec: np.concatenate(
        [np.ravel(x) for x in jax.device_get(trajectory(as_arrays(spec)))]
    )


@pytest.fixture(scope="module")
def trajectory():
    return make_trajectory()


def test_fields_that_count_as_unread_never_change_a_trajectory(trajectory):
    checked = 0
    for parent in parents(25, seed=5):
        reference = trajectory(parent)
        for path in unread_fields(parent):
            field = FIELDS[path]
            other = field.high if get_field(parent, path) != field.high else field.low
            moved = set_field(parent, path, other)
            # Results are close but not bitwise equal, because the compiler makes a separate loop
            # for each side of a scalar condition. Fields that are read change far more.
            np.testing.assert_allclose(
                trajectory(moved), reference, rtol=1e-5, atol=1e-5, err_msg=path
            )
            checked += 1
        np.testing.assert_allclose(trajectory(canonical(parent)), reference, atol=1e-5)
    assert checked > 100


@pytest.mark.parametrize("name", OPERATORS)
def test_children_train_differently_from_their_parents(trajectory, name):
    rng = np.random.default_rng(6)
    differ = total = 0
    for parent in parents(40, seed=7):
        try:
            child = mutate(parent, rng, set(), {name: OPERATORS[name]}).spec
        except ExhaustedError:
            continue
        total += 1
        differ += not np.array_equal(trajectory(child), trajectory(parent))
    # Six steps may never reach some limits, which is legitimate. Inert operators would fail most
    # often.
    assert differ >= 0.6 * total > 0
