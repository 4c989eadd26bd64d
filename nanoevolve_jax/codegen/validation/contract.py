"""The slots' contracts as names alone, for checks that must not wait for JAX to be imported.

`policy.slots` has the contracts themselves; `tests/test_language.py` compares the two.
"""

from nanoevolve_jax.policy.spec import Actuators, Sensors

PARAMETERS = {
    "direction": ("gradient", "momentum", "second_moment", "parameter", "knobs"),
    "gate": ("sensors", "features", "control"),
    "actuate": ("gate", "poles"),
    "features": ("sensors",),
}
"""Parameters by slot, in their order."""

RESULTS = {
    "direction": ("update", "momentum", "second_moment"),
    "gate": ("gate",),
    "actuate": Actuators._fields,
    "features": ("feature_0", "feature_1", "feature_2", "feature_3"),
}
"""Names of results by slot, for messages."""

_SWITCHES = ("momentum", "nesterov", "momentum_placement", "orthogonalize", "ns_steps")
KNOBS = (*Actuators._fields, *_SWITCHES, "second_moment")
CONTROL = ("sharpness", "bias", "coefficients")
POLES = ("aggressive", "conservative")
FIELDS = frozenset((*KNOBS, *CONTROL, *POLES, *Sensors._fields, *Actuators._fields))
"""Fields of everything that a slot is given."""
