"""From a computation to the program that is kept: StableHLO for any number of lanes."""

import functools

import jax
from jax import export
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.policy.stablehlo import require_plain

PLATFORMS = ("cpu", "cuda")


def leave_no_paths() -> None:
    """Keeps names of files out of programs, so that their bytes are the same everywhere."""
    jax.config.update("jax_traceback_in_locations_limit", 0)
    jax.config.update("jax_include_full_tracebacks_in_locations", True)


def exported(closed: ClosedJaxpr) -> export.Exported:
    """The program of one matrix's computation, mapped over a symbolic leading axis `lanes`.

    Raises:
      Refused: with reason 'custom_call' for an operation that is no plain arithmetic; 'trace' for
        one that cannot be mapped.
    """
    (lanes,) = export.symbolic_shape("lanes")
    arguments = [jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype) for x in closed.in_avals]
    run = jaxpr_as_fun(closed)

    def function(*flat):
        return tuple(run(*flat))

    try:
        program = export.export(jax.jit(jax.vmap(function)), platforms=PLATFORMS)(*arguments)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise Refused("trace", f"cannot be exported: {first}") from None
    if program.ordered_effects or program.unordered_effects:
        raise Refused("effect", "the program has effects; allowed: none")
    require_plain(program.mlir_module(), functools.partial(Refused, "custom_call"))
    return program
