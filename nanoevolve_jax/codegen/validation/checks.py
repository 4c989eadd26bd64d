"""All that is asked of a source after it was parsed; here JAX is at work."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nanoevolve_jax.codegen.validation.battery import Battery, battery
from nanoevolve_jax.codegen.validation.behaviour import require_sound
from nanoevolve_jax.codegen.validation.computation import computation_hash
from nanoevolve_jax.codegen.validation.contract import RESULTS
from nanoevolve_jax.codegen.validation.costs import cost_of, require_affordable
from nanoevolve_jax.codegen.validation.jaxprs import require_harmless
from nanoevolve_jax.codegen.validation.programs import exported, leave_no_paths
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.codegen.validation.tracing import traced
from nanoevolve_jax.policy.slots import Shape, built_in_source, shape_key

# For the built-in function only: half the time of a compilation, with the same allocations. A
# source is compiled as training does it: some take milliseconds at level 0 and hours otherwise.
_HASTE = {"xla_backend_optimization_level": 0}
MEMORY_MULTIPLE = 4.0  # of the built-in function's temporary memory
_MOST_FLOPS = 2e9  # of the built-in function at a shape that code is run at
_BATTERY_FLOPS = 6e9  # of the built-in function over a battery
MEMORY_FLOOR = 64 * 1024  # bytes a matrix that any function may use
PASSED = (
    *("language", "trace", "contract", "operations", "cost", "export", "memory", "finite"),
    *("deterministic", "lanes"),
)
"""What code that gets through has passed, in this order."""


class Program(NamedTuple):
    """A program and what it costs a call, for one matrix."""

    content: bytes
    flops: float
    bytes: float
    memory: int
    baseline_flops: float
    tried: int  # inputs it was run on; 0: traced, counted and exported only

    def facts(self) -> dict[str, Any]:
        """Everything but the content, for JSON."""
        return {k: v for k, v in self._asdict().items() if k != "content"}


class Checked(NamedTuple):
    """A source that passed."""

    computation: str
    seed_computation: str
    programs: dict[str, Program]  # by `shape_key`


def check(
    source: str,
    slot: str,
    shapes: list[Shape],
    dtype: str,
    max_cost: float,
    tried: list[Shape] | None = None,
) -> Checked:
    """Traces, checks, exports and tries a source that `language.check` has passed.

    Args:
      source: Python text.
      slot: one of `SLOTS`.
      shapes: the matrices' shapes, or (None,).
      dtype: 'float32' or 'bfloat16', of the iteration.
      max_cost: bound on FLOPs and bytes, as a multiple of the built-in function's.
      tried: those of the shapes at which it is run; one too large to be run here is halved until
        it is not. By default all.

    Raises:
      Refused: with the reason of the first check that fails.
    """
    leave_no_paths()
    seed = built_in_source(slot)
    # All shapes are traced before anything is compiled: most mistakes are found here.
    found = {shape: _traced(source, slot, shape, dtype) for shape in shapes}
    seeds = {shape: traced(seed, slot, shape, dtype) for shape in shapes}
    costs = {shape: (cost_of(found[shape]), cost_of(seeds[shape])) for shape in shapes}
    for shape in shapes:
        require_affordable(*costs[shape], max_cost)
    contents = {shape: exported(found[shape]) for shape in shapes}
    trials: dict[Shape, tuple[int, int]] = {}
    for shape in shapes if tried is None else tried:
        size, flops = shape, costs[shape][1].flops
        while flops > _MOST_FLOPS:
            size = (size[0] // 2, size[1] // 2)
            flops = cost_of(traced(seed, slot, size, dtype)).flops
        if size not in trials:
            pair = [traced(text, slot, size, dtype) for text in (source, seed)]
            trials[size] = _tried(slot, size, *pair, flops)
    programs = {}
    for shape in shapes:
        (cost, baseline), (memory, lanes) = costs[shape], _memory_at(shape, trials)
        content = bytes(contents[shape].serialize())
        programs[shape_key(shape)] = Program(content, *cost, memory, baseline.flops, lanes)
    return Checked(_computation(found), _computation(seeds), programs)


def _computation(closed: dict[Shape, ClosedJaxpr]) -> str:
    return computation_hash({shape_key(shape): x for shape, x in closed.items()})


def _traced(source: str, slot: str, shape: Shape, dtype: str) -> ClosedJaxpr:
    closed = traced(source, slot, shape, dtype)
    require_harmless(closed)
    return closed


def _tried(
    slot: str, shape: Shape, found: ClosedJaxpr, seed: ClosedJaxpr, flops: float
) -> tuple[int, int]:
    """Runs a function on the battery; gives its temporary bytes a matrix, and how many inputs."""
    inputs = battery(slot, shape, int(_BATTERY_FLOPS / max(1.0, flops)))
    call, memory = _compiled(exported(found).call, inputs)
    seed_call, seed_memory = _compiled(jax.vmap(jaxpr_as_fun(seed)), inputs, _HASTE)
    allowed = MEMORY_MULTIPLE * max(seed_memory, MEMORY_FLOOR)
    if memory > allowed:
        raise Refused("memory", f"{memory} temporary bytes a matrix; allowed: {allowed:.0f}")
    require_sound(call, seed_call, inputs, RESULTS[slot])
    return memory, len(inputs.names)


def _memory_at(shape: Shape, trials: dict[Shape, tuple[int, int]]) -> tuple[int, int]:
    """What a trial found at a shape; without one, what the largest one leads to expect."""
    if shape in trials:
        return trials[shape]
    largest = max(trials, key=math.prod)
    return trials[largest][0] * math.prod(shape) // math.prod(largest), 0


def _compiled(
    function: Any, inputs: Battery, options: dict[str, int] | None = None
) -> tuple[Any, int]:
    """Compiles a function for a battery's lanes; returns it and its temporary bytes per lane."""
    lanes = len(inputs.names)
    avals = [jax.ShapeDtypeStruct(x.shape, np.asarray(x).dtype) for x in inputs.arguments]
    compiled = jax.jit(function).lower(*avals).compile(compiler_options=options)
    facts = compiled.memory_analysis()
    return compiled, -(-int(facts.temp_size_in_bytes) // lanes) if facts else 0
