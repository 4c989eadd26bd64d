"""Measurements of the compiled programs: memory, pace, and how often each was compiled."""

import re
from collections import Counter

import jax
import numpy as np

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.execution.population import Programs, make_programs, stack_candidates
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.train import Candidate, Segment, Task, TrainState, segment_of
from nanoevolve_jax.policy.spec import NANOCHAT

_USABLE = 0.9  # fraction of a device's memory; the rest is for fragmentation and validation


class OutOfMemoryError(UserError):
    """A config that needs more memory than a device has, even with one lane."""


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether a runtime error of JAX means that a device's memory is full."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def segment_bytes(task: Task, lanes: int, segment_steps: int) -> int:
    """Returns the bytes that a segment takes on one device, according to the compiler."""
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
    """Returns the bytes of arguments, results and scratch memory of a compiled program."""
    used = compiled.memory_analysis()
    return (
        used.argument_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
        + used.temp_size_in_bytes
    )


def choose_lanes(one: int, two: int, limit: int, most: int) -> int:
    """Returns the largest power of two of lanes that fits.

    Args:
      one: Bytes of a segment with one lane.
      two: Bytes of a segment with two lanes; each further lane adds the difference.
      limit: Bytes of the device.
      most: Largest useful number of lanes.
    """
    lane = max(1, two - one)
    fitting = 1 + max(0, int(_USABLE * limit - one)) // lane
    return 1 << (max(1, min(fitting, most)).bit_length() - 1)


def measured_lanes(task: Task, segment_steps: int, most: int) -> int:
    """Returns the number of lanes for the devices of this process.

    It is 1 on a CPU, which reports no memory limit and gains nothing from lanes, and for candidates
    that several devices share, which are too large for lanes.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit", 0)
    if not limit or most < 2 or task.data_parallel > 1:
        return 1
    one, two = (segment_bytes(task, lanes, segment_steps) for lanes in (1, 2))
    return choose_lanes(one, two, limit, most)


_FAR = np.int32(10**6)  # horizon at which every segment does the same work


class Rehearsal:
    """A population that trains on random tokens, to time or profile the programs."""

    def __init__(
        self, task: Task, programs: Programs, candidate: Candidate, segment_steps: int, rows: int
    ):
        """Places all inputs on the devices; compiles only the initial state.

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
        """State of all lanes after the segments so far."""
        return self._state

    def _arguments(self) -> tuple:
        return self._state, self._candidates, self._segment, np.int32(0), _FAR

    def compile(self) -> jax.stages.Compiled:
        """Compiles the training program, so that running a segment compiles nothing."""
        return self._programs.train_segment.lower(*self._arguments()).compile()

    def segment(self) -> None:
        """Trains one segment and waits for it."""
        self._state, telemetry = self._programs.train_segment(*self._arguments())
        jax.block_until_ready(telemetry)

    def evaluation(self) -> None:
        """Validates once and waits for it."""
        evaluate = self._programs.evaluate_population
        jax.block_until_ready(evaluate(self._state.params, self._rows, self._token_bytes))


_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"
PROGRAMS = ("init_population", "train_segment", "evaluate_population")

_compiled: Counter = Counter()
_cache_hits: Counter = Counter()
_loaded = False  # whether the current program came from the persistent cache
_listening = False


def start_counting() -> None:
    """Starts counting compilations in this process; further calls do nothing."""
    global _listening
    if _listening:
        return
    _listening = True

    def on_duration(event, duration, **facts):
        global _loaded
        del duration
        if event == _COMPILE_EVENT and _loaded:
            _loaded = False  # JAX reports a load as a compilation too
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
    """Returns compilations per program since counting started, and all cache hits."""
    return {name: _compiled[name] for name in PROGRAMS} | {"cache_hits": _cache_hits["all"]}
