"""What a candidate must hold whatever it gains: no weight can trade these away."""

import math
from typing import Any

import jax
import optax

from model import gpt
from nanoevolve_jax.execution.train import Candidate, Task

STATE_LIMIT = 1.05  # optimizer state, in bytes of NanoChat's


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_ratio(task: Task, candidate: Candidate) -> float:
    """Bytes of the optimizer's state over those of NanoChat's own, which senses nothing."""
    params = jax.eval_shape(lambda: gpt.init_params(task.model, jax.random.key(0)))
    state = jax.eval_shape(task.optimizer(candidate, 1000).init, params)
    sensing = [
        optax.tree.get(state, name)
        for name in ("previous_sample", "averages", "sensors", "actuators", "gate")
    ]
    whole = _num_bytes(state)
    return whole / (whole - _num_bytes(sensing))
