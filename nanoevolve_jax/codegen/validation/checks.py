"""Everything that is checked of a source after its text, in the sandbox."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nanoevolve_jax.codegen.validation.computation import computation_hash
from nanoevolve_jax.codegen.validation.costs import (
    cost_of,
    exported,
    leave_no_paths,
    require_affordable,
    require_bounded,
)
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.codegen.validation.tracing import traced
from nanoevolve_jax.codegen.validation.trial import Inputs, inputs_of, require_sound
from nanoevolve_jax.policy.slots import SLOTS, Shape, built_in_source, shape_key

# The built-in function is compiled at a low level, which halves the time and allocates the same.
# A source is compiled as training compiles it, because some take hours at that level only.
_FAST_COMPILATION = {"xla_backend_optimization_level": 0}
MEMORY_MULTIPLE = 4.0  # of the built-in function's temporary memory
MEMORY_FLOOR = 64 * 1024  # bytes per matrix that any function may use
_MOST_FLOPS = 2e9  # of the built-in function at a shape at which code is run
_TRIAL_FLOPS = 6e9  # of the built-in function for all inputs of one shape
PASSED = (
    *("language", "trace", "contract", "operations", "cost", "export", "memory", "finite"),
    *("deterministic", "lanes"),
)
"""Checks that accepted code has passed, in their order."""


class Program(NamedTuple):
    """A program and its cost per call for one matrix."""

    content: bytes
    flops: float
    bytes: float
    memory: int
    baseline_flops: float
    tried: int  # inputs that it was run on; 0: only traced, counted and exported


class Passed(NamedTuple):
    """Programs of a source that passed, by `shape_key`, and hashes of its computation."""

    computation: str
    seed_computation: str  # of the built-in function
    programs: dict[str, Program]


def check(
    source: str,
    slot: str,
    shapes: list[Shape],
    dtype: str,
    max_cost: float,
    tried: list[Shape] | None = None,
) -> Passed:
    """Traces, checks, exports and runs a source that `language.check` has passed.

    Args:
      source: Python text.
      slot: One of `SLOTS`.
      shapes: Shapes of the matrices, or [None].
      dtype: Dtype of the iteration, 'float32' or 'bfloat16'.
      max_cost: Bound on FLOPs and bytes, as a multiple of the built-in function's.
      tried: Shapes at which it is run, by default all; one that is too large is halved.

    Raises:
      Refused: With the reason of the first check that fails.
    """
    leave_no_paths()
    # All shapes are traced before anything is compiled, which finds most mistakes.
    ours = {shape: traced(source, slot, shape, dtype) for shape in shapes}
    for closed in ours.values():
        require_bounded(closed)
    built_in = built_in_source(slot)
    theirs = {shape: traced(built_in, slot, shape, dtype) for shape in shapes}
    costs = {shape: (cost_of(ours[shape]), cost_of(theirs[shape])) for shape in shapes}
    for shape in shapes:
        require_affordable(*costs[shape], max_cost)
    contents = {shape: bytes(exported(ours[shape]).serialize()) for shape in shapes}
    trials: dict[Shape, tuple[int, int]] = {}
    for shape in shapes if tried is None else tried:
        size, flops = shape, costs[shape][1].flops
        while size is not None and flops > _MOST_FLOPS:
            size = (size[0] // 2, size[1] // 2)
            flops = cost_of(traced(built_in, slot, size, dtype)).flops
        if size not in trials:
            pair = (traced(text, slot, size, dtype) for text in (source, built_in))
            trials[size] = _tried(slot, size, *pair, flops)
    programs = {}
    for shape in shapes:
        (cost, baseline), (memory, lanes) = costs[shape], _memory_at(shape, trials)
        programs[shape_key(shape)] = Program(contents[shape], *cost, memory, baseline.flops, lanes)
    hashes = (
        computation_hash({shape_key(shape): x for shape, x in closed.items()})
        for closed in (ours, theirs)
    )
    return Passed(*hashes, programs)


def _tried(
    slot: str, shape: Shape, ours: ClosedJaxpr, theirs: ClosedJaxpr, flops: float
) -> tuple[int, int]:
    """Runs a function; returns its temporary bytes per matrix and the number of inputs."""
    inputs = inputs_of(slot, shape, int(_TRIAL_FLOPS / max(1.0, flops)))
    program, memory = _compiled(exported(ours).call, inputs)
    baseline, usual = _compiled(jax.vmap(jaxpr_as_fun(theirs)), inputs, _FAST_COMPILATION)
    most = int(MEMORY_MULTIPLE * max(usual, MEMORY_FLOOR))
    if memory > most:
        message = f"temporary memory must be at most {most} bytes per matrix, got {memory}"
        raise Refused("memory", message)
    require_sound(program, baseline, inputs, SLOTS[slot].result_names)
    return memory, len(inputs.names)


def _memory_at(shape: Shape, trials: dict[Shape, tuple[int, int]]) -> tuple[int, int]:
    """Result of the trial at a shape, or an estimate from the largest one."""
    if shape in trials:
        return trials[shape]
    largest = max(trials, key=math.prod)
    return trials[largest][0] * math.prod(shape) // math.prod(largest), 0


def _compiled(
    function: Any, inputs: Inputs, options: dict[str, int] | None = None
) -> tuple[Any, int]:
    """Compiles a function for all lanes of its inputs; returns it and its bytes per lane."""
    lanes = len(inputs.names)
    avals = [jax.ShapeDtypeStruct(x.shape, np.asarray(x).dtype) for x in inputs.arguments]
    compiled = jax.jit(function).lower(*avals).compile(compiler_options=options)
    facts = compiled.memory_analysis()
    return compiled, -(-int(facts.temp_size_in_bytes) // lanes) if facts else 0
