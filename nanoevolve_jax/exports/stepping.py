"""Single steps of the library's optimizer and of exported optimizers, from any state.

All optimizers have the same interface, so that their steps can be compared. Matrices have the
shape [inputs, outputs], and states are dictionaries with the names that the library uses.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.sensors import Signals
from nanoevolve_jax.policy.slots import BUILT_IN
from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.transform import evolved_muon

Matrices = list[np.ndarray]  # float32[inputs, outputs]
State = dict[str, Any]  # by name, an array or a list with an array per matrix

_SCALARS = ("count", "gate", "first_log_loss", "last_log_update_ratio")
_MOMENTS = ("momentum", "second_moment")
_BY_MATRIX = (*_MOMENTS, "previous_sample")
_OPTAX_NAMES = {"momentum": "mu", "second_moment": "nu"}
_TORCH_NAMES = {
    "momentum": "momentum_buffer",
    "second_moment": "second_momentum_buffer",
    "count": "step",
}


class Step(NamedTuple):
    """Inputs of one step."""

    params: Matrices
    grads: Matrices
    loss: np.float32
    state: State  # complete state of the library's optimizer
    learning_rate: np.float32
    momentum: np.float32
    weight_decay: np.float32
    gate: np.float32 = np.float32(np.nan)  # value that replaces the library's gate unless it is NaN


Optimizer = Callable[[Step], tuple[Matrices, State]]
"""From a step to the parameters after it and the part of the state that the optimizer keeps."""


def load_module(source: str) -> types.ModuleType:
    """Executes the text of an exported file.

    Args:
      source: Text of the file.

    Returns:
      Module that the file defines.
    """
    module = types.ModuleType("exported_policy")
    exec(compile(source, "exported_policy", "exec"), module.__dict__)
    return module


def _as_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def initial_state(spec: OptimizerSpec, params: Matrices) -> State:
    """Returns the state of the library's optimizer before the first step.

    Args:
      spec: Policy of concrete numbers.
      params: Matrices; float32[inputs, outputs] each.
    """
    shapes = jax.eval_shape(
        lambda params: _state_by_name(evolved_muon(spec, 1.0, total_steps=1).init(params)), params
    )
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


@functools.lru_cache(maxsize=2)  # one policy is compared with each of its exports
def library_optimizer(spec: OptimizerSpec, total_steps: int, code: Code | None = None) -> Optimizer:
    """Returns the optimizer that a search uses for a policy.

    Args:
      spec: Policy of concrete numbers.
      total_steps: Number of steps of the run.
      code: Rewritten functions, which run as certified programs, or None.
    """
    slots = code.slots() if code else BUILT_IN

    def run(spec: OptimizerSpec, step: Step):
        transform = evolved_muon(
            spec,
            step.learning_rate,
            total_steps=total_steps,
            momentum=lambda count: step.momentum,
            weight_decay=lambda count: step.weight_decay,
            slots=slots,
        )
        updates, state = transform.update(
            step.grads,
            _with_state(transform.init(step.params), step.state),
            step.params,
            value=step.loss,
            gate=step.gate,
        )
        return optax.apply_updates(step.params, updates), _state_by_name(state)

    # For certified programs, the numbers of the spec are traced arguments, as in a search. As
    # constants, they would make JAX fail, because the leading axis of a program has no size yet.
    if code:
        known = functools.partial(jax.jit(run), jax.tree.map(jnp.asarray, spec))
    else:
        known = jax.jit(functools.partial(run, spec))
    return lambda step: _as_numpy(known(step))


def _state_by_name(state: Any) -> State:
    """Returns the state of `evolved_muon` as a dictionary."""
    gate = state[0]
    muon, averages = gate.inner_state[1], gate.averages
    return {
        **{name: getattr(gate, name) for name in (*_SCALARS, "previous_sample")},
        **{name: getattr(muon, name) for name in _MOMENTS},
        **{
            f"averages/{name}": jnp.stack([averages.total[:, i], averages.weight[:, i]])
            for i, name in enumerate(Signals._fields)
        },
    }


def _with_state(state: Any, values: State) -> Any:
    """Returns the state of `evolved_muon` with the values of a dictionary."""
    gate, decay, *rest = state
    clip, muon, *others = gate.inner_state
    count = values["count"]
    muon = muon._replace(count=count, **{name: values[name] for name in _MOMENTS})
    total, weight = jnp.stack([values[f"averages/{name}"] for name in Signals._fields], axis=-1)
    gate = gate._replace(
        averages=gate.averages._replace(total=total, weight=weight),
        inner_state=(clip, muon, *others),
        **{name: values[name] for name in (*_SCALARS, "previous_sample")},
    )
    return gate, decay._replace(count=count), *rest


def optax_optimizer(module: types.ModuleType, total_steps: int) -> Optimizer:
    """Returns the optimizer of a file exported for optax.

    Args:
      module: Module of the file, see `load_module`.
      total_steps: Number of steps of the run.
    """

    @jax.jit
    def run(step: Step):
        transform = module.optimizer(
            step.learning_rate,
            total_steps,
            momentum=lambda count: step.momentum,
            weight_decay=lambda count: step.weight_decay,
        )
        state = transform.init(step.params)
        names = {_OPTAX_NAMES.get(name, name): name for name in (*_SCALARS, *_BY_MATRIX)}
        names = {own: name for own, name in names.items() if own in state._fields}
        values = {own: step.state[name] for own, name in names.items()}
        signals = list(getattr(state, "averages", {}))
        if signals:
            values["averages"] = {name: step.state[f"averages/{name}"] for name in signals}
        updates, state = transform.update(
            step.grads, state._replace(**values), step.params, value=step.loss
        )
        kept = {name: getattr(state, own) for own, name in names.items()}
        kept |= {f"averages/{name}": state.averages[name] for name in signals}
        return optax.apply_updates(step.params, updates), kept

    return lambda step: _as_numpy(run(step))


def torch_optimizer(module: types.ModuleType, total_steps: int) -> Optimizer:
    """Returns the optimizer of a file exported for PyTorch, with a parameter group per shape.

    Args:
      module: Module of the file, see `load_module`.
      total_steps: Number of steps of the run.

    Raises:
      ImportError: If torch is not installed.
    """
    import torch

    by_matrix, shared = _torch_names(module)

    def tensor(x):
        return torch.tensor(np.asarray(x, np.float32))

    def run(step: Step):
        params = [torch.nn.Parameter(tensor(p.T)) for p in step.params]
        for p, g in zip(params, step.grads, strict=True):
            p.grad = tensor(g.T)
        settings = {
            "kind": "muon",
            "lr": float(step.learning_rate),
            "momentum": float(step.momentum),
            "weight_decay": float(step.weight_decay),
            **{"ns_steps": 1, "beta2": 0.5},  # overridden by the policy
        }
        shapes = dict.fromkeys(p.shape for p in params)
        groups = [
            settings | {"params": [p for p in params if p.shape == shape]} for shape in shapes
        ]
        optimizer = module.MuonAdamW(groups, total_steps=total_steps)
        for i, p in enumerate(params):
            own = {name: tensor(step.state[ours][i].T) for name, ours in by_matrix.items()}
            statistics = {name: tensor(step.state[ours]) for name, ours in shared.items()}
            optimizer.state[p] = own | statistics
        optimizer.step(loss=float(step.loss))
        states = [optimizer.state[p] for p in params]
        kept: State = {
            ours: [state[name].numpy().T for state in states] for name, ours in by_matrix.items()
        }
        kept |= {ours: states[0][name].numpy() for name, ours in shared.items()}
        return [p.detach().numpy().T for p in params], kept

    return run


def _torch_names(module: types.ModuleType) -> tuple[dict[str, str], dict[str, str]]:
    """Maps the names in the state of a file for PyTorch to the names that the library uses.

    Returns:
      (names of arrays that each matrix has, names of values that all matrices share).
    """
    import torch

    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    optimizer = module.MuonAdamW([{"kind": "muon", "params": [p], "lr": 0.1}], total_steps=2)
    optimizer.step(loss=1.0)
    ours = {_TORCH_NAMES.get(name, name): name for name in (*_SCALARS, *_BY_MATRIX)}
    kept = {name: ours.get(name, f"averages/{name}") for name in optimizer.state[p]}
    by_matrix = {name: known for name, known in kept.items() if known in _BY_MATRIX}
    return by_matrix, {name: known for name, known in kept.items() if name not in by_matrix}
