"""Which axis of every array the devices of the `data` axis share, for one large candidate.

The batch is divided by rows and the optimizer's state by whatever axis divides evenly; inside the
update, stacks of matrices are divided by matrices (`stacking.py`). Parameters are whole on every
device, as in NanoChat's distributed optimizer.
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

from nanoevolve_jax.execution.train import DATA, Segment, TrainState

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
