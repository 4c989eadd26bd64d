"""Canonical forms: two specs with the same form are the same policy.

Fields that have no effect are set to their defaults. A child that differs from its parent only in
such fields would train to the same result.
"""

from typing import Any

from nanoevolve_jax.policy.spec import (
    ACTUATORS,
    CLIP_GLOBAL_NORM,
    CLIP_NONE,
    CLIP_UPDATE_RMS,
    FIELDS,
    OFF_ON,
    TRAINING_SENSORS,
    Actuators,
    OptimizerSpec,
    get_field,
    set_field,
)

_CONTROL = tuple(path for path in FIELDS if path.startswith("control."))


def _poles(actuator: str) -> tuple[str, str]:
    return f"control.aggressive.{actuator}", f"control.conservative.{actuator}"


def _moves(spec: OptimizerSpec, actuator: str) -> bool:
    low, high = (get_field(spec, path) for path in _poles(actuator))
    return low != high


def _dead_actuators(spec: OptimizerSpec) -> set[str]:
    """Returns the names of the actuators whose stage of the optimizer is switched off."""
    stages = {name: row.stage for name, row in ACTUATORS._asdict().items()}
    return {name for name, stage in stages.items() if stage and not getattr(spec, stage)}


def moving_actuators(spec: OptimizerSpec) -> list[str]:
    """Returns the actuators that an enabled gate moves.

    Args:
      spec: Policy of concrete numbers.

    Returns:
      Names of the actuators whose stage is on and whose poles differ.
    """
    dead = _dead_actuators(spec)
    return [name for name in Actuators._fields if name not in dead and _moves(spec, name)]


def _clip_never_binds(spec: OptimizerSpec) -> bool:
    """Returns whether the limit on the update's RMS can never take effect.

    Without a trust ratio, the RMS of an update is at most the update multiplier times the RMS of a
    semi-orthogonal matrix.
    """
    if spec.clip != CLIP_UPDATE_RMS or spec.trust_ratio:
        return False
    if not spec.control.enabled:
        return spec.clip_threshold >= spec.update_multiplier
    poles = (spec.control.aggressive, spec.control.conservative)
    largest = spec.update_multiplier * max(pole.update_multiplier for pole in poles)
    return min(pole.clip_threshold for pole in poles) >= largest


def with_fixed_actuators(spec: OptimizerSpec, actuators: Actuators) -> OptimizerSpec | None:
    """Replaces the gate of a policy by fixed values of its actuators.

    Args:
      spec: Policy of concrete numbers.
      actuators: Fixed values, scaled as `gate.blended_actuators` returns them.

    Returns:
      A policy without a gate, or None if its fields cannot express one of the values, such as a
      partial mix.
    """
    dead = _dead_actuators(spec)
    fixed: dict[str, Any] = {}
    for name, row in ACTUATORS._asdict().items():
        value = getattr(actuators, name)
        if row.field and not FIELDS[row.field].choices:
            fixed[row.field] = value
        elif name in dead:
            continue
        elif row.stage and FIELDS[row.stage].choices == OFF_ON and value in (0.0, 1.0):
            fixed[row.stage] = int(value)
        elif value != row.default:
            return None
    return spec._replace(**fixed, control=spec.control._replace(enabled=0))


def unread_fields(spec: OptimizerSpec) -> set[str]:
    """Returns the paths of the fields that have no effect on the policy.

    Args:
      spec: Policy of concrete numbers.

    Returns:
      Keys of `FIELDS`.
    """
    unread: set[str] = set()
    dead = _dead_actuators(spec)
    control = spec.control
    if control.enabled:
        # The gate sets these actuators from its poles instead.
        replaced = {row.field for row in ACTUATORS if row.field and not row.scales_field}
        unread |= {name for name in replaced if not FIELDS[name].choices}
        for actuator in dead:
            unread |= set(_poles(actuator))
        if not moving_actuators(spec):
            unread |= {p for p in _CONTROL if ".coefficients." in p or ".normalisers." in p}
            unread |= {"control.bias", "control.sharpness"}
        for name in TRAINING_SENSORS:
            if getattr(control.coefficients, name) == 0:
                unread.add(f"control.normalisers.{name}")
    else:
        unread |= set(_CONTROL) - {"control.enabled", "control.ema_beta"}
        if spec.clip == CLIP_NONE:
            unread.add("clip_threshold")
    senses = control.enabled and any(
        getattr(control.coefficients, name) != 0 for name in TRAINING_SENSORS
    )
    gate_moves = "control.bias" not in unread
    if spec.clip != CLIP_GLOBAL_NORM and not (senses and gate_moves):
        unread.add("control.ema_beta")
    if not spec.second_moment:
        unread.add("second_moment_beta")
    orthogonal_unused = (
        control.enabled
        and control.aggressive.orthogonal_mix == 0
        and control.conservative.orthogonal_mix == 0
    )
    if not spec.orthogonalize or orthogonal_unused:
        unread.add("ns_steps")
    trust_unused = (
        control.enabled
        and control.aggressive.trust_ratio_mix == 0
        and control.conservative.trust_ratio_mix == 0
    )
    if not spec.trust_ratio or trust_unused:
        unread |= {"trust_ratio_min", "trust_ratio_max"}
    return unread


def canonical(spec: OptimizerSpec) -> OptimizerSpec:
    """Returns the canonical form of a spec.

    Specs with the same form lead to the same training run. The converse does not hold, because the
    rules do not find every field without an effect.

    Args:
      spec: Policy of concrete numbers.

    Returns:
      The spec with default values in all fields that have no effect.
    """
    if _clip_never_binds(spec):
        spec = spec._replace(clip=CLIP_NONE)
    for path in unread_fields(spec):
        spec = set_field(spec, path, FIELDS[path].default)
    return spec
