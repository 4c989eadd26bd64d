"""How many lanes fit into a device's memory."""

import jax
import numpy as np

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.execution.population import make_programs, stack_candidates
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.train import Candidate, Segment, Task
from nanoevolve_jax.policy.spec import NANOCHAT

_USABLE = 0.9  # of a device's memory; the rest is fragmentation and the validation's logits


class OutOfMemoryError(UserError):
    """A config that needs more memory than a device has, in one lane."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether a runtime error of JAX says that a device's memory is full."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def segment_bytes(task: Task, lanes: int, segment_steps: int) -> int:
    """Bytes that a segment of training takes on one device, counted by the compiler."""
    programs = make_programs(task, devices=1, lanes=lanes)
    recipe = Recipe(*[0.0] * len(Recipe._fields))
    candidates = stack_candidates([Candidate(NANOCHAT, recipe)] * lanes)
    seeds, steps = np.zeros(lanes, np.uint32), np.int32(segment_steps)
    state = jax.eval_shape(programs.init_population, candidates, seeds, steps)
    shape = (lanes, segment_steps, task.batch_size, task.model.sequence_len)
    tokens = jax.ShapeDtypeStruct(shape, np.int32)
    segment = Segment(tokens, tokens, jax.ShapeDtypeStruct(shape[:2], np.float32))
    lowered = programs.train_segment.lower(state, candidates, segment, np.int32(0), steps)
    return compiled_bytes(lowered.compile())


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of the arguments, results and scratch memory of a compiled program."""
    used = compiled.memory_analysis()
    return (
        used.argument_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
        + used.temp_size_in_bytes
    )


def choose_lanes(one: int, two: int, limit: int, most: int) -> int:
    """The largest power of two that fits.

    Args:
      one: bytes of a segment in one lane.
      two: in two lanes; what they add over one is what every further lane adds.
      limit: bytes of the device.
      most: lanes that there is work for.
    """
    lane = max(1, two - one)
    fitting = 1 + max(0, int(_USABLE * limit - one)) // lane
    return 1 << (max(1, min(fitting, most)).bit_length() - 1)


def measured_lanes(task: Task, segment_steps: int, most: int) -> int:
    """Lanes for this process's first device; one where a device does not say what it has.

    A CPU does not, and gains nothing from more lanes than one. A candidate that several devices
    share is too large for lanes.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit", 0)
    if not limit or most < 2 or task.data_parallel > 1:
        return 1
    one, two = (segment_bytes(task, lanes, segment_steps) for lanes in (1, 2))
    return choose_lanes(one, two, limit, most)
