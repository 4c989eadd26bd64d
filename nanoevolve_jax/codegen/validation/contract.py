"""Names in the contracts of the slots, for checks of source text."""

from nanoevolve_jax.policy.slots import SLOTS, Control, Poles
from nanoevolve_jax.policy.spec import Actuators, Knobs, Sensors

PARAMETERS = {name: slot.parameters for name, slot in SLOTS.items()}
"""Parameters by slot, in their order."""

RESULTS = {name: slot.result_names for name, slot in SLOTS.items()}
"""Names of results by slot, for messages."""

FIELDS = frozenset(
    (*Knobs._fields, *Control._fields, *Poles._fields, *Sensors._fields, *Actuators._fields)
)
"""Fields of the arguments of all slots."""
