"""The compiled programs: candidates in lanes on every device of a `population` mesh.

A second mesh axis, `data`, lets several devices share one large candidate. Programs are written for
the population axis alone (`shard_map`); over the data axis XLA partitions them by the layout that
state and batch are held to, and without that axis nothing is held to anything.

Three programs exist, whatever is searched: `init_population`, `train_segment`,
`evaluate_population`. Specs, recipes, seeds, step numbers and horizons are inputs.

Over the data axis the batch is divided by rows and the optimizer's state by any axis that divides
evenly. Inside the update, stacks of matrices are divided by matrices (`policy/stacking.py`).
Parameters are whole on every device, as in NanoChat's distributed optimizer.
"""

import math
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nanoevolve_jax.execution import hosts, train
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.train import DATA, Segment, TrainState
from nanoevolve_jax.policy.certified import CertificateError, Code
from nanoevolve_jax.policy.spec import NANOCHAT

POPULATION = "population"
_WHOLE_BELOW = 1024  # entries; to gather fewer costs more than to keep them, as in NanoChat


def divided(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Divides the longest axis that `parts` divides; small and odd arrays stay whole."""
    even = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if not even or math.prod(shape) < _WHOLE_BELOW:
        return PartitionSpec()
    return PartitionSpec(*[None] * max(even, key=lambda axis: shape[axis]), DATA)


def layout(tree: Any, parts: int) -> Any:
    """The PartitionSpec of every leaf over the data axis.

    Args:
      tree: a TrainState, a Segment with axes [K, B, T], or anything else, which stays whole.
      parts: devices of the data axis; 1: nothing is divided.
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
_ROWS = PartitionSpec(None, train.DATA)  # of validation, [N, B, T + 1]


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
    width: int  # devices of the population axis * lanes
    mesh: jax.sharding.Mesh

    def place(self, tree: Any) -> Any:
        """Puts a tree with leading axes [width] where the programs expect it.

        Restored and initial state must be placed alike, or the same program compiles twice.
        """
        return hosts.scatter(tree, self._shardings(tree))

    def abstract(self, tree: Any) -> Any:
        """Returns shapes, dtypes and shardings of what `place` gives for such a tree."""
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


_KEPT = 16  # training programs of rewritten code that stay compiled


def make_mesh(devices: int, data: int = 1) -> jax.sharding.Mesh:
    """A mesh over the first `devices` devices, `data` of them a candidate."""
    axes = {POPULATION: devices // data} | ({train.DATA: data} if data > 1 else {})
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices()[:devices],
    )


@cache
def make_programs(task: train.Task, *, devices: int, lanes: int) -> Programs:
    """The programs for `devices` devices of `lanes` candidates each; compiles nothing yet.

    Equal arguments give the same programs, so a process compiles each of them once.

    Args:
      task: static description of the training.
      devices: of the whole mesh, `task.data_parallel` of them a candidate.
      lanes: candidates a device; more than one are vmapped.
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

    train_segment = _training(task, mesh, lanes)
    width = devices // data * lanes
    return Programs(init_population, train_segment, evaluate_population, width, mesh)


def _hold(tree: Any, data: int) -> Any:
    """Keeps one candidate's state or batch divided over the data axis."""
    if data == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, layout(tree, data))


def _training(task: train.Task, mesh: jax.sharding.Mesh, lanes: int) -> Any:
    """The program `train_segment`."""
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
            state, telemetry = train.train_segment(
                task, hold(state), candidate, hold(segment), *steps
            )
            return hold(state), telemetry

        over = train.over_lanes(run, lanes=lanes, in_axes=(0, 0, 0, None, None))
        return over(state, candidates, segment, start, total_steps)

    return train_segment


@lru_cache(maxsize=_KEPT)
def _training_of_code(task: train.Task, code: Code, mesh: jax.sharding.Mesh, lanes: int) -> Any:
    return _training(task._replace(code=code), mesh, lanes)


def with_code(programs: Programs, task: train.Task, code: Code | None) -> Programs:
    """The programs with rewritten functions in the optimizer; the same ones without any.

    Only training is compiled anew: initial state and validation know nothing of the optimizer.

    Args:
      programs: of the task.
      task: without code.
      code: what is rewritten.

    Raises:
      CertificateError: if it cannot be called for the matrices of this model.
    """
    if code is None:
        return programs
    if task.data_parallel > 1:
        raise CertificateError(
            f"config.data_parallel is {task.data_parallel}; allowed: 1 for rewritten code, whose "
            "programs run on one device"
        )
    lanes = programs.width * task.data_parallel // programs.mesh.size
    trained = _training_of_code(task, code, programs.mesh, lanes)
    return programs._replace(train_segment=trained)


def stack_candidates(candidates: list[train.Candidate]) -> train.Candidate:
    """Stacks candidates of Python numbers into arrays [width]; dtypes depend on no value.

    Their code is left out: it is in the program.
    """
    dtypes = train.Candidate(
        spec=jax.tree.map(lambda x: np.int32 if isinstance(x, int) else np.float32, NANOCHAT),
        recipe=Recipe(*[np.float32] * len(Recipe._fields)),
    )
    numbers = [candidate._replace(code=None) for candidate in candidates]
    return jax.tree.map(lambda dtype, *xs: np.asarray(xs, dtype), dtypes, *numbers)
