"""One step of our optimizer and of exported ones, from any state, in one form.

Matrices are [inputs, outputs] here and what is remembered has our own names, so that steps can be
compared whatever the framework.
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
Memory = dict[str, Any]  # arrays, or lists of one array a matrix, by name

_SCALARS = ("count", "gate", "first_log_loss", "last_log_update_ratio")
_OF_MUON = ("momentum", "second_moment")
_BY_MATRIX = (*_OF_MUON, "previous_sample")
_TORCH_NAMES = {  # where a file for PyTorch has other names than ours
    "momentum": "momentum_buffer",
    "second_moment": "second_momentum_buffer",
    "count": "step",
}


class Step(NamedTuple):
    """What an optimizer is given."""

    params: Matrices
    grads: Matrices
    loss: np.float32
    memory: Memory  # everything that our own optimizer remembers
    learning_rate: np.float32
    momentum: np.float32
    weight_decay: np.float32
    gate: np.float32 = np.float32(np.nan)  # holds our gate; NaN: it is what it senses


Optimizer = Callable[[Step], tuple[Matrices, Memory]]
"""From a step to the parameters after it and what is then remembered, as far as it is kept."""


def load_module(source: str) -> types.ModuleType:
    """The module of an exported file's text."""
    module = types.ModuleType("exported_policy")
    exec(compile(source, "exported_policy", "exec"), module.__dict__)
    return module


def _as_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def no_memory(spec: OptimizerSpec, params: Matrices) -> Memory:
    """What our optimizer remembers before the first step."""
    shapes = jax.eval_shape(
        lambda params: _memory_of(evolved_muon(spec, 1.0, total_steps=1).init(params)), params
    )
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


@functools.lru_cache(maxsize=2)  # one policy is compared with each of its exports
def own_optimizer(spec: OptimizerSpec, total_steps: int, code: Code | None = None) -> Optimizer:
    """The policy as a search trains it; code, where there is any, by its certified programs."""
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
            _with_memory(transform.init(step.params), step.memory),
            step.params,
            value=step.loss,
            gate=step.gate,
        )
        return optax.apply_updates(step.params, updates), _memory_of(state)

    # Programs get numbers as a search hands them over, which are no constants of its program: JAX
    # would fold constants into programs whose leading axis has no size yet, and fail.
    if code:
        known = functools.partial(jax.jit(run), jax.tree.map(jnp.asarray, spec))
    else:
        known = jax.jit(functools.partial(run, spec))
    return lambda step: _as_numpy(known(step))


def _memory_of(state: Any) -> Memory:
    """Everything that `evolved_muon` remembers, by name."""
    gate = state[0]
    muon, averages = gate.inner_state[1], gate.averages
    return {
        **{name: getattr(gate, name) for name in (*_SCALARS, "previous_sample")},
        **{name: getattr(muon, name) for name in _OF_MUON},
        **{
            f"averages/{name}": jnp.stack([averages.total[:, i], averages.weight[:, i]])
            for i, name in enumerate(Signals._fields)
        },
    }


def _with_memory(state: Any, memory: Memory) -> Any:
    """The state of `evolved_muon` with what it is to remember."""
    gate, decay, *rest = state
    clip, muon, *others = gate.inner_state
    count = memory["count"]
    muon = muon._replace(count=count, **{name: memory[name] for name in _OF_MUON})
    total, weight = jnp.stack([memory[f"averages/{name}"] for name in Signals._fields], axis=-1)
    gate = gate._replace(
        averages=gate.averages._replace(total=total, weight=weight),
        inner_state=(clip, muon, *others),
        **{name: memory[name] for name in (*_SCALARS, "previous_sample")},
    )
    return gate, decay._replace(count=count), *rest


def optax_optimizer(module: types.ModuleType, total_steps: int) -> Optimizer:
    """The optimizer of a file exported for optax."""

    @jax.jit
    def run(step: Step):
        transform = module.optimizer(
            step.learning_rate,
            total_steps,
            momentum=lambda count: step.momentum,
            weight_decay=lambda count: step.weight_decay,
        )
        known, state = step.memory, transform.init(step.params)
        kept = {name: known[name] for name in state._fields if name in known}
        averaged = state.averages._fields if hasattr(state, "averages") else ()
        if averaged:
            averages = {name: module.Average(*known[f"averages/{name}"]) for name in averaged}
            kept["averages"] = module.Averages(**averages)
        updates, state = transform.update(
            step.grads, state._replace(**kept), step.params, value=step.loss
        )
        memory = {name: x for name, x in state._asdict().items() if name in known}
        for name in averaged:
            memory[f"averages/{name}"] = jnp.stack(getattr(state.averages, name))
        return optax.apply_updates(step.params, updates), memory

    return lambda step: _as_numpy(run(step))


def torch_optimizer(module: types.ModuleType, total_steps: int) -> Optimizer:
    """The optimizer of a file exported for PyTorch; one group a shape, as in NanoChat.

    Raises:
      ImportError: if torch is not installed.
    """
    import torch

    by_matrix, shared = _kept_in_torch(module)

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
            **{"ns_steps": 1, "beta2": 0.5},  # which the policy overrules
        }
        shapes = dict.fromkeys(p.shape for p in params)
        groups = [
            settings | {"params": [p for p in params if p.shape == shape]} for shape in shapes
        ]
        optimizer = module.MuonAdamW(groups, total_steps=total_steps)
        for i, p in enumerate(params):
            own = {name: tensor(step.memory[ours][i].T) for name, ours in by_matrix.items()}
            statistics = {name: tensor(step.memory[ours]) for name, ours in shared.items()}
            optimizer.state[p] = own | statistics
        optimizer.step(loss=float(step.loss))
        states = [optimizer.state[p] for p in params]
        memory: Memory = {
            ours: [state[name].numpy().T for state in states] for name, ours in by_matrix.items()
        }
        memory |= {ours: states[0][name].numpy() for name, ours in shared.items()}
        return [p.detach().numpy().T for p in params], memory

    return run


def _kept_in_torch(module: types.ModuleType) -> tuple[dict[str, str], dict[str, str]]:
    """Our names by those in the state of a file for PyTorch: of each matrix, and shared by all."""
    import torch

    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    optimizer = module.MuonAdamW([{"kind": "muon", "params": [p], "lr": 0.1}], total_steps=2)
    optimizer.step(loss=1.0)
    ours = {_TORCH_NAMES.get(name, name): name for name in (*_SCALARS, *_BY_MATRIX)}
    kept = {name: ours.get(name, f"averages/{name}") for name in optimizer.state[p]}
    by_matrix = {name: known for name, known in kept.items() if known in _BY_MATRIX}
    return by_matrix, {name: known for name, known in kept.items() if name not in by_matrix}
