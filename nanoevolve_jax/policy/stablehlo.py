"""The operations that an exported program may contain, which are only arithmetic on arrays."""

from collections.abc import Iterator
from typing import Any

from jax.interpreters import mlir

from nanoevolve_jax.errors import must

_ELEMENTWISE = (
    *("abs", "add", "and", "atan2", "cbrt", "ceil", "clamp", "compare", "convert", "cosine"),
    *("count_leading_zeros", "divide", "exponential", "exponential_minus_one", "floor"),
    *("is_finite", "log", "log_plus_one", "logistic", "maximum", "minimum", "multiply", "negate"),
    *("not", "or", "popcnt", "power", "remainder", "round_nearest_afz", "round_nearest_even"),
    *("rsqrt", "select", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign"),
    *("sine", "sqrt", "subtract", "tan", "tanh", "xor", "bitcast_convert"),
)
_SHAPING = (
    *("broadcast_in_dim", "concatenate", "constant", "dot_general", "dynamic_broadcast_in_dim"),
    *("dynamic_iota", "dynamic_pad", "dynamic_reshape", "dynamic_slice", "dynamic_update_slice"),
    *("dynamic_gather", "gather", "get_dimension_size", "iota", "pad", "real_dynamic_slice"),
    *("reduce", "reduce_window", "reshape", "reverse", "scatter", "select_and_scatter", "slice"),
    *("sort", "transpose", "convolution", "dynamic_conv"),
)
_CONTROL = ("case", "if", "return", "while", "optimization_barrier")
ALLOWED = frozenset(
    {"builtin.module", "func.func", "func.return", "func.call"}
    | {f"stablehlo.{name}" for name in (*_ELEMENTWISE, *_SHAPING, *_CONTROL)}
)
_CUSTOM_CALL = "stablehlo.custom_call"
_CALLED = ("shape_assertion",)  # used by `jax.export` to check a symbolic axis


def operations(module: str) -> set[str]:
    """Returns the names of all operations of a module.

    Args:
      module: MLIR text.

    Returns:
      Names such as `stablehlo.add`. The name of a custom call includes its target.
    """
    with mlir.make_ir_context():
        return set(_named(mlir.ir.Module.parse(module).operation))


def without_lines(module: str) -> str:
    """Returns the MLIR text of a module without source locations."""
    with mlir.make_ir_context():
        return mlir.ir.Module.parse(module).operation.get_asm(enable_debug_info=False)


def _named(operation: Any) -> Iterator[str]:
    name = operation.operation.name
    if name == _CUSTOM_CALL:
        name = f"{name} {mlir.ir.StringAttr(operation.attributes['call_target_name']).value}"
    yield name
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield from _named(inner)


def require_plain(module: str, error: type[Exception]) -> None:
    """Checks that a module contains only permitted operations.

    Args:
      module: MLIR text.
      error: Type of the exception to raise.

    Raises:
      error: If the module contains another operation. The message names the operation.
    """
    called = {f"{_CUSTOM_CALL} {name}" for name in _CALLED}
    foreign = operations(module) - ALLOWED - called
    if foreign:
        raise error(must("a program", "contain only arithmetic on arrays", min(foreign)))
