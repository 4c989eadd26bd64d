"""The gate of a policy as an optax transform around an inner transform.

At every step, the transform computes the sensors and the gate, sets the actuators, and passes them
to the inner transform.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nanoevolve_jax.policy import sensors as sensing
from nanoevolve_jax.policy.select import is_known, select
from nanoevolve_jax.policy.slots import (
    BUILT_IN,
    EXTRA_SENSORS,
    Poles,
    Slots,
    control_of,
    poles_of,
)
from nanoevolve_jax.policy.spec import (
    ACTUATORS,
    FIELDS,
    Actuator,
    Actuators,
    OptimizerSpec,
    Sensors,
)


class GateState(NamedTuple):
    """State of `gated`. Telemetry reads its scalars."""

    count: jax.Array  # shape=(), dtype=jnp.int32
    first_log_loss: jax.Array  # shape=(), dtype=jnp.float32
    averages: sensing.Averages
    last_log_update_ratio: jax.Array  # shape=(), dtype=jnp.float32
    previous_sample: Any  # structure of the parameters, with a sample of each matrix's entries
    log_grad_norm: jax.Array  # shape=(), dtype=jnp.float32
    sensors: Sensors  # inputs of the gate; each shape=(), dtype=jnp.float32
    gate: jax.Array  # shape=(), dtype=jnp.float32
    actuators: Actuators  # values that were applied; each shape=(), dtype=jnp.float32
    inner_state: Any


def static_actuators(spec: OptimizerSpec) -> Actuators:
    """Returns the actuators of a policy whose gate is off.

    Args:
      spec: Policy of numbers or traced scalars.

    Returns:
      Actuators as the fields of the spec set them; scalars.
    """

    def value(row: Actuator) -> Any:
        if row.field is None:
            return row.default
        value = getattr(spec, row.field)
        return select(value, 1.0, 0.0) if FIELDS[row.field].choices else value

    return Actuators(*map(value, ACTUATORS))


def blend(gate: Any, poles: Poles) -> Actuators:
    """Interpolates between the poles; the built-in function of the slot `actuate`.

    Args:
      gate: Value of the gate in [0, 1]; scalar.
      poles: Actuators at a gate of 0 and at a gate of 1; scalars.

    Returns:
      Actuators at the given gate; scalars.
    """
    pairs = zip(poles.aggressive, poles.conservative, strict=True)
    return Actuators(*(low + gate * (high - low) for low, high in pairs))


def blended_actuators(spec: OptimizerSpec, gate: Any, slots: Slots = BUILT_IN) -> Actuators:
    """Returns the actuators that a policy applies at a given value of the gate.

    Args:
      spec: Policy of numbers or traced scalars.
      gate: Value of the gate in [0, 1], where 0 is aggressive and 1 is conservative; scalar.
      slots: Functions that replace the built-in ones.

    Returns:
      Actuators; scalars. The update multiplier includes that of the spec.
    """
    moved = (slots.actuate or blend)(gate, poles_of(spec))
    scaled = {
        name: getattr(spec, row.field) * getattr(moved, name)
        for name, row in ACTUATORS._asdict().items()
        if row.scales_field
    }
    return moved._replace(**scaled)


def gate_of(spec: OptimizerSpec, sensors: Sensors, slots: Slots = BUILT_IN) -> Any:
    """Computes the gate of a policy from its sensors.

    Args:
      spec: Policy of numbers or traced scalars.
      sensors: Squashed sensors; float32 scalars.
      slots: Functions that replace the built-in ones.

    Returns:
      Value of the gate in [0, 1]; float32[].
    """
    extra = slots.features(sensors) if slots.features else ()
    if slots.gate is None:
        return sensing.gate_value(spec.control, sensors, extra)
    return slots.gate(sensors, extra or (0.0,) * EXTRA_SENSORS, control_of(spec))


def gated(
    inner: optax.GradientTransformation,
    spec: OptimizerSpec,
    *,
    total_steps: Any,
    slots: Slots = BUILT_IN,
) -> optax.GradientTransformationExtraArgs:
    """Runs an inner transform with actuators that the policy's gate sets at every step.

    A signal that is not finite, such as a NaN loss, does not enter the averages.

    Args:
      inner: Transform that returns a direction not yet scaled by a learning rate. Its `update`
        receives three extra arguments: `actuators`, an `Actuators` of scalars; `log_grad_norm`, the
        log of the global gradient norm, float32[]; and `log_running_norm`, the running mean of
        that log before this step, float32[].
      spec: Policy of numbers or traced scalars.
      total_steps: Number of steps of the run, at least 1; a number or a traced scalar.
      slots: Functions that replace the built-in ones.

    Returns:
      A transform whose `update` takes `params` and two extra arguments. `value` is the loss; it may
      be omitted only if the gate is known to be off, in which case the loss sensors are 0. `gate`
      is an optional scalar that replaces the computed gate unless it is NaN. It lets constant gates
      and recorded trajectories run through the same program as a sensing policy.
    """
    inner = optax.with_extra_args_support(inner)
    control = spec.control
    value_optional = is_known(control.enabled) and not control.enabled

    def init_fn(params):
        def zero():  # every leaf has its own buffer, so that the state can be donated
            return jnp.zeros((), jnp.float32)

        def no_sample(x):
            return jnp.zeros(sensing.sample_shape(x.shape), x.dtype)

        return GateState(
            count=jnp.zeros((), jnp.int32),
            first_log_loss=zero(),
            averages=sensing.init_averages(),
            last_log_update_ratio=zero(),
            previous_sample=jax.tree.map(no_sample, params),
            log_grad_norm=zero(),
            sensors=Sensors(*[zero() for _ in Sensors._fields]),
            gate=zero(),
            actuators=Actuators(*[zero() for _ in Actuators._fields]),
            inner_state=inner.init(params),
        )

    def update_fn(updates, state, params=None, *, value=None, gate=None, **extra_args):
        if value is None:
            if not value_optional:
                raise ValueError(
                    "value must be the loss of this step, as in "
                    "tx.update(grads, state, params, value=loss), got None"
                )
            value = 1.0
        sample = sensing.sample_entries(updates)
        signals, finite = sensing.observe(
            value,
            updates,
            params,
            state.count,
            sample,
            state.previous_sample,
            state.last_log_update_ratio,
        )
        log_grad_norm = signals.log_grad_norm
        keep_first = state.averages.seen(0).log_loss | ~finite.log_loss
        first_log_loss = jnp.where(keep_first, state.first_log_loss, signals.log_loss)
        averages = sensing.update_averages(
            state.averages, signals, finite, control.ema_beta, total_steps
        )
        raw = sensing.raw_sensors(averages, first_log_loss, state.count, total_steps)
        sensors = sensing.squash(raw, control.normalisers)
        sensed = gate_of(spec, sensors, slots)
        gate = sensed if gate is None else jnp.where(jnp.isnan(gate), sensed, gate)
        moved = blended_actuators(spec, gate, slots)
        actuators = select(control.enabled, moved, static_actuators(spec))
        # The mean excludes this step, so that a spike cannot raise its own limit.
        usual = state.averages.mean(1).log_grad_norm
        running = jnp.where(state.averages.seen(1).log_grad_norm, usual, log_grad_norm)
        direction, inner_state = inner.update(
            updates,
            state.inner_state,
            params,
            actuators=actuators,
            log_running_norm=running,
            log_grad_norm=log_grad_norm,
            **extra_args,
        )
        log_ratio = sensing.log_norm(direction) - sensing.log_norm(params)
        as_scalar = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
        return direction, GateState(
            count=optax.safe_increment(state.count),
            first_log_loss=first_log_loss,
            averages=averages,
            last_log_update_ratio=log_ratio,
            previous_sample=sample,
            log_grad_norm=log_grad_norm,
            sensors=jax.tree.map(as_scalar, sensors),
            gate=as_scalar(gate),
            actuators=jax.tree.map(as_scalar, actuators),
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
