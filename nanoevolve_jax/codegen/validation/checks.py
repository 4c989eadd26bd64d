"""All that is asked of a source after it was parsed; here JAX is at work."""

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
from nanoevolve_jax.codegen.validation.seeds import seed_source
from nanoevolve_jax.codegen.validation.tracing import traced
from nanoevolve_jax.policy.slots import Shape, shape_key

# Half the time of a compile; what is allocated and whether results are finite stay the same.
_HASTE = {"xla_backend_optimization_level": 0}
MEMORY_MULTIPLE = 4.0  # of the built-in function's temporary memory
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

    def facts(self) -> dict[str, Any]:
        """Everything but the content, for JSON."""
        return {k: v for k, v in self._asdict().items() if k != "content"}


class Checked(NamedTuple):
    """A source that passed."""

    computation: str
    seed_computation: str
    programs: dict[str, Program]  # by `shape_key`


def check(source: str, slot: str, shapes: list[Shape], dtype: str, max_cost: float) -> Checked:
    """Traces, checks, exports and tries a source that `language.check` has passed.

    Args:
      source: Python text.
      slot: one of `SLOTS`.
      shapes: the matrices' shapes, or (None,).
      dtype: 'float32' or 'bfloat16', of the iteration.
      max_cost: bound on FLOPs and bytes, as a multiple of the built-in function's.

    Raises:
      Refused: with the reason of the first check that fails.
    """
    leave_no_paths()
    seed = seed_source(slot)
    # All shapes are traced before anything is compiled: most mistakes are found here.
    found = {shape: _traced(source, slot, shape, dtype) for shape in shapes}
    seeds = {shape: traced(seed, slot, shape, dtype) for shape in shapes}
    programs = {
        shape_key(shape): _program(slot, shape, found[shape], seeds[shape], max_cost)
        for shape in shapes
    }
    return Checked(_computation(found), _computation(seeds), programs)


def _computation(closed: dict[Shape, ClosedJaxpr]) -> str:
    return computation_hash({shape_key(shape): x for shape, x in closed.items()})


def _traced(source: str, slot: str, shape: Shape, dtype: str) -> ClosedJaxpr:
    closed = traced(source, slot, shape, dtype)
    require_harmless(closed)
    return closed


def _program(
    slot: str, shape: Shape, found: ClosedJaxpr, seed: ClosedJaxpr, max_cost: float
) -> Program:
    cost, baseline = cost_of(found), cost_of(seed)
    require_affordable(cost, baseline, max_cost)
    program = exported(found)
    inputs = battery(slot, shape)
    call, memory = _compiled(program.call, inputs)
    seed_call, seed_memory = _compiled(jax.vmap(jaxpr_as_fun(seed)), inputs)
    allowed = MEMORY_MULTIPLE * max(seed_memory, MEMORY_FLOOR)
    if memory > allowed:
        raise Refused("memory", f"{memory} temporary bytes a matrix; allowed: {allowed:.0f}")
    require_sound(call, seed_call, inputs, RESULTS[slot])
    return Program(bytes(program.serialize()), *cost, memory, baseline.flops)


def _compiled(function: Any, inputs: Battery) -> tuple[Any, int]:
    """A compiled function for a battery's lanes, and its temporary bytes a lane."""
    lanes = len(inputs.names)
    avals = [jax.ShapeDtypeStruct(x.shape, np.asarray(x).dtype) for x in inputs.arguments]
    compiled = jax.jit(function).lower(*avals).compile(compiler_options=_HASTE)
    facts = compiled.memory_analysis()
    return compiled, -(-int(facts.temp_size_in_bytes) // lanes) if facts else 0
