"""Checks of a source that run in the sandbox, after its text has been checked."""

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

# The built-in function is compiled at a low optimization level, which halves the compilation time
# and needs the same memory. A source is compiled as in training, because some sources run for hours
# at the low level only.
_FAST_COMPILATION = {"xla_backend_optimization_level": 0}
MEMORY_MULTIPLE = 4.0  # limit on temporary memory, as a multiple of the built-in function's
MEMORY_FLOOR = 64 * 1024  # bytes per matrix that every function may use
_MOST_FLOPS = 2e9  # largest FLOPs of the built-in function at a shape at which code is run
_TRIAL_FLOPS = 6e9  # largest FLOPs of the built-in function for all inputs of a shape
PASSED = (
    *("language", "trace", "contract", "operations", "cost", "export", "memory", "finite"),
    *("deterministic", "lanes"),
)
"""Checks that accepted code has passed, in their order."""


class Program(NamedTuple):
    """Program for a shape, with its cost per call and matrix."""

    content: bytes  # serialized program
    flops: float
    bytes: float  # memory traffic in bytes
    memory: int  # temporary memory in bytes, measured or estimated
    baseline_flops: float  # FLOPs of the built-in function
    tried: int  # number of inputs that the function was run on; 0 if it was not run at this shape


class Passed(NamedTuple):
    """Result of all checks for a source that has passed them."""

    computation: str  # hash of the computation
    seed_computation: str  # hash of the built-in function's computation
    programs: dict[str, Program]  # programs by `shape_key`


def check(
    source: str,
    slot: str,
    shapes: list[Shape],
    dtype: str,
    max_cost: float,
    tried: list[Shape] | None = None,
) -> Passed:
    """Traces, checks, exports and runs a source whose text `language.check` has accepted.

    Args:
      source: Python text of the source.
      slot: Name of the slot, one of `SLOTS`.
      shapes: Shapes (inputs, outputs) of the matrices, or [None] for a slot that takes no matrix.
      dtype: Dtype of the matrix iteration, 'float32' or 'bfloat16'.
      max_cost: Bound on FLOPs and bytes, as a multiple of those of the built-in function.
      tried: Shapes at which the function is run; all shapes by default. Shapes that are too large
        are halved until the built-in function is cheap enough.

    Returns:
      Programs of the source and hashes of its computation.

    Raises:
      Refused: If a check fails, with the reason of the first one that does.
    """
    leave_no_paths()
    # All shapes are traced before anything is compiled, because tracing finds most mistakes.
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
    """Runs a function and returns its temporary bytes per matrix and the number of inputs."""
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
    """Returns (memory, inputs) of the trial at a shape, or an estimate from the largest trial."""
    if shape in trials:
        return trials[shape]
    largest = max(trials, key=math.prod)
    return trials[largest][0] * math.prod(shape) // math.prod(largest), 0


def _compiled(
    function: Any, inputs: Inputs, options: dict[str, int] | None = None
) -> tuple[Any, int]:
    """Compiles a function for all lanes and returns it with its temporary bytes per lane."""
    lanes = len(inputs.names)
    avals = [jax.ShapeDtypeStruct(x.shape, np.asarray(x).dtype) for x in inputs.arguments]
    compiled = jax.jit(function).lower(*avals).compile(compiler_options=options)
    facts = compiled.memory_analysis()
    return compiled, -(-int(facts.temp_size_in_bytes) // lanes) if facts else 0
