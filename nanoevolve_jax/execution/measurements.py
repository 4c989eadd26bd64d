"""Measurements of the memory, speed and number of compilations of the compiled programs."""

import re
from collections import Counter

import jax
import numpy as np

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.execution.population import Programs, make_programs, stack_candidates
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.train import Candidate, Segment, Task, TrainState, segment_of
from nanoevolve_jax.policy.spec import NANOCHAT

_USABLE = 0.9  # usable fraction of device memory, leaving room for fragmentation and validation


class OutOfMemoryError(UserError):
    """Error about a config that needs more memory than a device has."""


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether a JAX runtime error means that the memory of a device is full.

    Args:
      error: Error raised by JAX.
    """
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def segment_bytes(task: Task, lanes: int, segment_steps: int) -> int:
    """Returns the compiler's estimate of the memory in bytes for a segment on one device.

    Args:
      task: Static description of the training.
      lanes: Number of candidates on the device.
      segment_steps: Steps per segment, K.
    """
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
    """Returns the size in bytes of a program's arguments, results and temporary memory.

    Args:
      compiled: Compiled program.
    """
    used = compiled.memory_analysis()
    return (
        used.argument_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
        + used.temp_size_in_bytes
    )


def choose_lanes(one: int, two: int, limit: int, most: int) -> int:
    """Returns the largest number of lanes that fits in memory and is a power of two.

    Args:
      one: Memory in bytes for a segment with one lane.
      two: Memory in bytes for a segment with two lanes. Each additional lane adds the difference.
      limit: Memory of the device in bytes.
      most: Largest useful number of lanes.
    """
    lane = max(1, two - one)
    fitting = 1 + max(0, int(_USABLE * limit - one)) // lane
    return 1 << (max(1, min(fitting, most)).bit_length() - 1)


def measured_lanes(task: Task, segment_steps: int, most: int) -> int:
    """Returns the number of lanes for the devices of this process.

    The number is 1 on a CPU, which does not report a memory limit or benefit from lanes. It is also
    1 if several devices share a candidate, because such candidates are too large for lanes.

    Args:
      task: Static description of the training.
      segment_steps: Steps per segment, K.
      most: Largest useful number of lanes.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit", 0)
    if not limit or most < 2 or task.data_parallel > 1:
        return 1
    one, two = (segment_bytes(task, lanes, segment_steps) for lanes in (1, 2))
    return choose_lanes(one, two, limit, most)


_FAR = np.int32(10**6)  # distant horizon, so that every segment does the same work


class Rehearsal:
    """Population that trains on random tokens, used to time or profile the programs."""

    def __init__(
        self, task: Task, programs: Programs, candidate: Candidate, segment_steps: int, rows: int
    ):
        """Places all inputs on the devices and compiles only `init_population`.

        Args:
          task: Static description of the training.
          programs: Programs of the task.
          candidate: Candidate that every lane trains.
          segment_steps: Steps per segment, K.
          rows: Number of validation rows.
        """
        width, model = programs.width, task.model
        rng = np.random.default_rng(0)

        def tokens(*shape):
            shape = (*shape, task.batch_size, model.sequence_len + 1)
            return rng.integers(0, model.vocab_size, shape, np.int32)

        self._programs = programs
        self._candidates = programs.place(stack_candidates([candidate] * width))
        self._segment = programs.place(segment_of(tokens(width, segment_steps)))
        self._rows = tokens(-(-rows // task.batch_size))
        self._token_bytes = np.ones(model.vocab_size, np.int32)
        seeds = programs.place(np.arange(width, dtype=np.uint32))
        self._state = programs.init_population(self._candidates, seeds, _FAR)

    @property
    def state(self) -> TrainState:
        """State of all lanes after all completed segments."""
        return self._state

    def _arguments(self) -> tuple:
        return self._state, self._candidates, self._segment, np.int32(0), _FAR

    def compile(self) -> jax.stages.Compiled:
        """Compiles the training program before the first segment and returns it."""
        return self._programs.train_segment.lower(*self._arguments()).compile()

    def segment(self) -> None:
        """Trains one segment and waits until it is complete."""
        self._state, telemetry = self._programs.train_segment(*self._arguments())
        jax.block_until_ready(telemetry)

    def evaluation(self) -> None:
        """Validates all lanes once and waits until the validation is complete."""
        evaluate = self._programs.evaluate_population
        jax.block_until_ready(evaluate(self._state.params, self._rows, self._token_bytes))


_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"
PROGRAMS = ("init_population", "train_segment", "evaluate_population")

_compiled: Counter = Counter()
_cache_hits: Counter = Counter()
_loaded = False  # True if the current program was loaded from the persistent cache
_listening = False


def start_counting() -> None:
    """Starts counting compilations in this process. Repeated calls have no effect."""
    global _listening
    if _listening:
        return
    _listening = True

    def on_duration(event, duration, **facts):
        global _loaded
        del duration
        if event == _COMPILE_EVENT and _loaded:
            _loaded = False  # JAX also reports a cache hit as a compilation
        elif event == _COMPILE_EVENT:
            name = re.sub(r"^jit\((.*)\)$", r"\1", str(facts.get("fun_name", "")))
            _compiled[name.removeprefix("jit_")] += 1

    def on_event(event, **facts):
        global _loaded
        del facts
        if event == _CACHE_HIT_EVENT:
            _cache_hits["all"] += 1
            _loaded = True

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)


def compilations() -> dict[str, int]:
    """Returns the number of compilations per program, and of cache hits as `cache_hits`.

    Only events after `start_counting` are counted.
    """
    return {name: _compiled[name] for name in PROGRAMS} | {"cache_hits": _cache_hits["all"]}
