"""Hypothesis strategies and helpers for specs."""

import numpy as np
from hypothesis import strategies as st

from nanoevolve_jax.policy.mutations import mutate
from nanoevolve_jax.policy.spec import (
    CLIP_GLOBAL_NORM,
    FIELDS,
    NANOCHAT,
    POST,
    PRESETS,
    Sensors,
    build_spec,
    get_field,
)

EVERYTHING = NANOCHAT._replace(
    momentum_placement=POST,
    trust_ratio=1,
    clip=CLIP_GLOBAL_NORM,
    control=NANOCHAT.control._replace(
        enabled=1,
        coefficients=Sensors(*[0.1] * len(Sensors._fields))._replace(
            loss_ema=1.0,
            loss_improvement_ema=0.5,
            grad_norm_ema=-0.5,
            update_ratio_ema=0.3,
            grad_alignment_ema=0.2,
            step_fraction=1.0,
        ),
        conservative=NANOCHAT.control.conservative._replace(orthogonal_mix=0.4),
    ),
)
"""A gate that reads every sensor and moves every actuator."""


def field_values(field):
    if field.integer:
        return st.integers(int(field.low), int(field.high))
    return st.floats(field.low, field.high, allow_nan=False, width=64)


def specs():
    """Returns a strategy over all specs within bounds."""
    return st.fixed_dictionaries({p: field_values(f) for p, f in FIELDS.items()}).map(build_spec)


def random_spec(rng):
    """Draws a spec within bounds from a NumPy generator; values at the bounds are likely."""

    def draw(field):
        if field.integer:
            return int(rng.integers(field.low, field.high + 1))
        share = float(rng.choice([0.0, 1.0, rng.random(), rng.random(), rng.random()]))
        return field.low + share * (field.high - field.low)

    return build_spec({path: draw(field) for path, field in FIELDS.items()})


def wandered_spec(seed, changes=40):
    """Returns a spec that is many mutations away from a preset.

    Half of these specs have a gate that reads every sensor. Some change switches that the mutation
    operators leave alone.
    """
    rng = np.random.default_rng(seed)
    spec = list(PRESETS.values())[seed % len(PRESETS)]
    for _ in range(changes):
        spec = mutate(spec, rng, set()).spec
    for name in ("nesterov", "second_moment", "orthogonalize"):
        spec = spec._replace(**{name: int(rng.random() < 0.8)})
    if seed % 2:
        weights = Sensors(
            *(float(f"{w:.4g}") for w in np.clip(rng.normal(0, 0.7, len(Sensors._fields)), -2, 2))
        )
        spec = spec._replace(control=spec.control._replace(enabled=1, coefficients=weights))
    return spec


def flat(spec=NANOCHAT):
    """Returns the spec as a dictionary from path to stored number."""
    return {path: get_field(spec, path) for path in FIELDS}
