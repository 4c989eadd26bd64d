"""The compiled programs: candidates in lanes on every device of a `population` mesh.

Three programs exist, whatever is searched: `init_population`, `train_segment`,
`evaluate_population`. Specs, recipes, seeds, step numbers and horizons are inputs.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nanoevolve_jax.execution import train
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.policy.spec import NANOCHAT

AXIS = "population"
_LANES, _ALL = PartitionSpec(AXIS), PartitionSpec()


class Programs(NamedTuple):
    """Jitted functions over a whole population; leading axes are `[width]`.

    init_population(candidates, seeds uint32[width], total_steps) -> TrainState
    train_segment(state, candidates, Segment with axes [width, K], start, total_steps)
      -> (TrainState, float32[width, K, 14]); the state passed in is donated
    evaluate_population(params, rows int32[N, B, T+1], token_bytes) -> (nats, bytes), [width, N]
    """

    init_population: Any
    train_segment: Any
    evaluate_population: Any
    width: int  # devices * lanes
    mesh: jax.sharding.Mesh

    def place(self, tree: Any) -> Any:
        """Puts a tree with leading axes [width] where the programs expect it.

        Restored and initial state must be placed alike, or the same program compiles twice.
        """
        return jax.device_put(tree, NamedSharding(self.mesh, _LANES))


def make_mesh(devices: int) -> jax.sharding.Mesh:
    """A mesh over the first `devices` devices."""
    return jax.make_mesh(
        (devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@cache
def make_programs(task: train.Task, *, devices: int, lanes: int) -> Programs:
    """The programs for `devices` devices of `lanes` candidates each; compiles nothing yet.

    Equal arguments give the same programs, so a process compiles each of them once.

    Args:
      task: static description of the training.
      devices: size of the population axis.
      lanes: candidates a device; more than one are vmapped.
    """
    mesh = make_mesh(devices)
    shard = partial(jax.shard_map, mesh=mesh, check_vma=False)
    over = partial(train.over_lanes, lanes=lanes)

    @jax.jit
    @partial(shard, in_specs=(_LANES, _LANES, _ALL), out_specs=_LANES)
    def init_population(candidates, seeds, total_steps):
        init = partial(train.init_state, task)
        return over(init, in_axes=(0, 0, None))(candidates, seeds, total_steps)

    @partial(jax.jit, donate_argnums=0)
    @partial(shard, in_specs=(_LANES, _LANES, _LANES, _ALL, _ALL), out_specs=_LANES)
    def train_segment(state, candidates, segment, start, total_steps):
        run = partial(train.train_segment, task)
        return over(run, in_axes=(0, 0, 0, None, None))(
            state, candidates, segment, start, total_steps
        )

    @jax.jit
    @partial(shard, in_specs=(_LANES, _ALL, _ALL), out_specs=_LANES)
    def evaluate_population(params, rows, token_bytes):
        evaluate = partial(train.evaluate, task)
        return over(evaluate, in_axes=(0, None, None))(params, rows, token_bytes)

    return Programs(init_population, train_segment, evaluate_population, devices * lanes, mesh)


def stack_candidates(candidates: list[train.Candidate]) -> train.Candidate:
    """Stacks candidates of Python numbers into arrays [width]; dtypes depend on no value."""
    dtypes = train.Candidate(
        spec=jax.tree.map(lambda x: np.int32 if isinstance(x, int) else np.float32, NANOCHAT),
        recipe=Recipe(*[np.float32] * len(Recipe._fields)),
    )
    return jax.tree.map(lambda dtype, *xs: np.asarray(xs, dtype), dtypes, *candidates)
