"""Compiled programs that train a population over lanes and devices.

`init_population`, `train_segment` and `evaluate_population` serve every candidate of a search,
because specs, recipes, seeds, step numbers and horizons are inputs of the programs. The devices
form a mesh with the axis `population`, over which `shard_map` distributes the programs. Each device
trains one or more candidates in lanes.

An optional second mesh axis, `data`, lets several devices share one large candidate. Sharding
constraints tell XLA how to partition the programs over it: the batch by rows, each array of the
optimizer's state by an axis that divides evenly, and stacks of matrices inside the update by
matrices (`policy/stacking.py`). Parameters are replicated, as in NanoChat's distributed optimizer.
"""

import math
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nanoevolve_jax.errors import must
from nanoevolve_jax.execution import hosts, train
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.train import DATA, Segment, TrainState
from nanoevolve_jax.policy.certified import CertificateError, Code
from nanoevolve_jax.policy.spec import NANOCHAT

POPULATION = "population"
_WHOLE_BELOW = 1024  # arrays with fewer entries are replicated, as in NanoChat


def divided(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Returns a PartitionSpec that divides the longest evenly divisible axis of an array.

    Small arrays and arrays without such an axis are replicated.

    Args:
      shape: Shape of the array.
      parts: Number of devices on the data axis.
    """
    even = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if not even or math.prod(shape) < _WHOLE_BELOW:
        return PartitionSpec()
    return PartitionSpec(*[None] * max(even, key=lambda axis: shape[axis]), DATA)


def layout(tree: Any, parts: int) -> Any:
    """Returns the PartitionSpec of every leaf over the data axis.

    Args:
      tree: TrainState, Segment with axes [K, B, T], or another tree, which is replicated.
      parts: Number of devices on the data axis. With 1, every leaf is replicated.
    """
    whole = jax.tree.map(lambda _: PartitionSpec(), tree)
    if parts == 1:
        return whole
    if isinstance(tree, TrainState):
        state = jax.tree.map(lambda x: divided(x.shape, parts), tree.opt_state)
        return whole._replace(opt_state=state)
    if isinstance(tree, Segment):
        rows = PartitionSpec(None, DATA)
        return whole._replace(inputs=rows, targets=rows)
    return whole


_LANES, _ALL = PartitionSpec(POPULATION), PartitionSpec()
_ROWS = PartitionSpec(None, train.DATA)  # validation rows [N, B, T + 1]


class Programs(NamedTuple):
    """Jitted functions over a population, whose batched arguments have a leading axis [width].

    init_population(candidates, seeds uint32[width], total_steps) -> TrainState
    train_segment(state, candidates, Segment with axes [width, K], start, total_steps)
      -> (TrainState, telemetry float32[width, K, 14]), donating the given state
    evaluate_population(params, rows int32[N, B, T+1], token_bytes) -> (nats, bytes), [width, N]
    """

    init_population: Any
    train_segment: Any
    evaluate_population: Any
    width: int  # number of candidates: devices on the population axis times lanes
    mesh: jax.sharding.Mesh  # devices of the programs

    def place(self, tree: Any) -> Any:
        """Places a tree with leading axis [width] on the devices.

        Restored state must have the placement of initial state. Otherwise a program would be
        compiled twice.

        Args:
          tree: Tree of host or device arrays.
        """
        return hosts.scatter(tree, self._shardings(tree))

    def abstract(self, tree: Any) -> Any:
        """Returns the shapes, dtypes and shardings of the result of `place`.

        Args:
          tree: Tree of arrays, or of shapes and dtypes, with leading axis [width].
        """
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            tree,
            self._shardings(tree),
        )

    def _shardings(self, tree: Any) -> Any:
        lane = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, PartitionSpec(POPULATION, *spec)),
            layout(lane, self.mesh.shape.get(train.DATA, 1)),
        )


_KEPT = 16  # number of cached training programs with rewritten code


def make_mesh(devices: int, data: int = 1) -> jax.sharding.Mesh:
    """Returns a mesh over the first devices of all processes.

    Args:
      devices: Number of devices in the mesh.
      data: Number of devices per candidate. Above 1, the mesh has the axis `data`.
    """
    axes = {POPULATION: devices // data} | ({train.DATA: data} if data > 1 else {})
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices()[:devices],
    )


@cache
def make_programs(task: train.Task, *, devices: int, lanes: int) -> Programs:
    """Returns the programs for a number of devices and lanes, without compiling them.

    Equal arguments return the same programs, so a process compiles each program only once.

    Args:
      task: Static description of the training.
      devices: Number of devices in the mesh, a multiple of `task.data_parallel`.
      lanes: Number of candidates per device. Several candidates are vmapped.
    """
    data = task.data_parallel
    mesh = make_mesh(devices, data)
    shard = partial(jax.shard_map, mesh=mesh, axis_names={POPULATION}, check_vma=False)
    over = partial(train.over_lanes, lanes=lanes)
    hold = partial(_hold, data=data)

    def hold_rows(rows):
        return rows if data == 1 else jax.lax.with_sharding_constraint(rows, _ROWS)

    @jax.jit
    @partial(shard, in_specs=(_LANES, _LANES, _ALL), out_specs=_LANES)
    def init_population(candidates, seeds, total_steps):
        def init(*args):
            return hold(train.init_state(task, *args))

        return over(init, in_axes=(0, 0, None))(candidates, seeds, total_steps)

    @jax.jit
    @partial(shard, in_specs=(_LANES, _ALL, _ALL), out_specs=_LANES)
    def evaluate_population(params, rows, token_bytes):
        evaluate = partial(train.evaluate, task)
        return over(evaluate, in_axes=(0, None, None))(params, hold_rows(rows), token_bytes)

    train_segment = _training(task, None, mesh, lanes)
    width = devices // data * lanes
    return Programs(init_population, train_segment, evaluate_population, width, mesh)


def _hold(tree: Any, data: int) -> Any:
    """Constrains the state or segment of one candidate to be divided over the data axis."""
    if data == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, layout(tree, data))


def _training(task: train.Task, code: Code | None, mesh: jax.sharding.Mesh, lanes: int) -> Any:
    """Returns the program `train_segment` with rewritten functions, if any."""
    hold = partial(_hold, data=task.data_parallel)

    @partial(jax.jit, donate_argnums=0)
    @partial(
        jax.shard_map,
        mesh=mesh,
        axis_names={POPULATION},
        check_vma=False,
        in_specs=(_LANES, _LANES, _LANES, _ALL, _ALL),
        out_specs=_LANES,
    )
    def train_segment(state, candidates, segment, start, total_steps):
        def run(state, candidate, segment, *steps):
            coded = candidate._replace(code=code)
            state, telemetry = train.train_segment(task, hold(state), coded, hold(segment), *steps)
            return hold(state), telemetry

        over = train.over_lanes(run, lanes=lanes, in_axes=(0, 0, 0, None, None))
        return over(state, candidates, segment, start, total_steps)

    return train_segment


@lru_cache(maxsize=_KEPT)
def _training_of_code(task: train.Task, code: Code, mesh: jax.sharding.Mesh, lanes: int) -> Any:
    return _training(task, code, mesh, lanes)


def with_code(programs: Programs, task: train.Task, code: Code | None) -> Programs:
    """Returns programs whose optimizer uses rewritten functions.

    Only the training program is replaced, because the other two do not run the optimizer's update.

    Args:
      programs: Programs of the task.
      task: Static description of the training.
      code: Rewritten functions, or None to return `programs` unchanged.

    Raises:
      CertificateError: If several devices share a candidate.
    """
    if code is None:
        return programs
    if task.data_parallel > 1:
        raise CertificateError(
            must("config.data_parallel", "be 1 for rewritten code", task.data_parallel)
        )
    lanes = programs.width * task.data_parallel // programs.mesh.size
    trained = _training_of_code(task, code, programs.mesh, lanes)
    return programs._replace(train_segment=trained)


def stack_candidates(candidates: list[train.Candidate]) -> train.Candidate:
    """Stacks candidates of Python numbers into arrays [width] of fixed dtypes.

    Rewritten code is dropped, because it is part of the program.

    Args:
      candidates: Candidates of concrete numbers.
    """
    dtypes = train.Candidate(
        spec=jax.tree.map(lambda x: np.int32 if isinstance(x, int) else np.float32, NANOCHAT),
        recipe=Recipe(*[np.float32] * len(Recipe._fields)),
    )
    numbers = [candidate._replace(code=None) for candidate in candidates]
    return jax.tree.map(lambda dtype, *xs: np.asarray(xs, dtype), dtypes, *numbers)
