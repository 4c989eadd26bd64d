"""Policies that are only the baseline with other numbers of its recipe."""

from scipy.special import expit

from nanoevolve_jax.policy.canonical import (
    canonical,
    moving_actuators,
    with_fixed_actuators,
)
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.gate import blended_actuators
from nanoevolve_jax.policy.slots import SCOPES
from nanoevolve_jax.policy.spec import DECAY_NONE, OptimizerSpec


def without_still_gate(spec: OptimizerSpec) -> OptimizerSpec:
    """The same policy without its gate, where the gate moves nothing that fixed fields cannot say.

    A gate that senses nothing stands at `sigmoid(sharpness * bias)`; one whose poles coincide,
    for every actuator that something reads, may move and changes nothing. Multiplier, clip
    threshold and second-moment decay have fields of their own; a partial mix has not, and keeps
    its gate.
    """
    if not spec.control.enabled or not is_static(spec):
        return spec
    gate = float(expit(spec.control.sharpness * spec.control.bias))
    return with_fixed_actuators(spec, blended_actuators(spec, gate)) or spec


def is_static(spec: OptimizerSpec, code: Code | None = None) -> bool:
    """Whether the gate is off, senses nothing, or moves nothing that acts.

    Of a gate in use that code has rewritten none of that is known.
    """
    if spec.control.enabled and code and any(code.of(slot) for slot in SCOPES["gating"]):
        return False
    senses = any(coefficient != 0 for coefficient in spec.control.coefficients)
    return not (spec.control.enabled and senses and moving_actuators(canonical(spec)))


def is_retuned_baseline(
    spec: OptimizerSpec, baseline: OptimizerSpec, code: Code | None = None
) -> bool:
    """Whether a policy is the baseline once recipe fields and the multiplier are reset.

    Such a policy says that the baseline can be tuned further, and nothing about policies. No
    decay is the baseline's decay at a recipe's `weight_decay` of 0. Rewritten code is other
    mathematics, whatever its spec.
    """
    if code is not None:
        return False
    spec = without_still_gate(spec)
    own = ["momentum", "second_moment_beta", "update_multiplier"]
    own += ["decay"] * (spec.decay == DECAY_NONE)
    reset = spec._replace(**{name: getattr(baseline, name) for name in own})
    return canonical(reset) == canonical(baseline)
