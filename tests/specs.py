"""Hypothesis strategies and helpers for specs."""

from hypothesis import strategies as st

from nanoevolve_jax.policy.spec import FIELDS, NANOCHAT, build_spec, get_field


def field_values(field):
    if field.integer:
        return st.integers(int(field.low), int(field.high))
    return st.floats(field.low, field.high, allow_nan=False, width=64)


def specs():
    """Any spec within bounds."""
    return st.fixed_dictionaries({p: field_values(f) for p, f in FIELDS.items()}).map(build_spec)


def random_spec(rng):
    """Any spec within bounds, from a NumPy generator; the bounds themselves are likely."""

    def draw(field):
        if field.integer:
            return int(rng.integers(field.low, field.high + 1))
        share = float(rng.choice([0.0, 1.0, rng.random(), rng.random(), rng.random()]))
        return field.low + share * (field.high - field.low)

    return build_spec({path: draw(field) for path, field in FIELDS.items()})


def flat(spec=NANOCHAT):
    """The spec as a dictionary from path to stored number."""
    return {path: get_field(spec, path) for path in FIELDS}
