"""Which operations of JAX a computation may consist of, and why others are refused.

The list is of what is allowed, so that an operation of a later JAX, or one registered by somebody
else, is refused until it is looked at.
"""

from jax.extend.core import JaxprEqn

from nanoevolve_jax.codegen.validation.refusals import Refused

_ELEMENTWISE = (
    *("abs", "add", "add_any", "and", "atan2", "bitcast_convert_type", "cbrt", "ceil", "clamp"),
    *("convert_element_type", "copy", "cos", "div", "eq", "exp", "exp2", "expm1", "floor", "ge"),
    *("gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min"),
    *("mul", "ne", "neg", "not", "optimization_barrier", "or", "pow", "rem", "round", "rsqrt"),
    *("select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin"),
    *("sqrt", "square", "stop_gradient", "sub", "tanh", "xor"),
)
_SHAPING = (
    *("broadcast_in_dim", "concatenate", "dynamic_slice", "dynamic_update_slice", "gather"),
    *("iota", "pad", "reshape", "rev", "scatter", "scatter-add", "scatter-max", "scatter-min"),
    *("scatter-mul", "scatter-sub", "slice", "split", "squeeze", "stack", "tile"),
    "transpose",
)
_REDUCTIONS = (
    *("argmax", "argmin", "cummax", "cummin", "cumprod", "cumsum", "dot_general", "reduce_and"),
    *("reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "sort"),
)
_CONTROL = (
    *("closed_call", "cond", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "scan"),
    "platform_index",  # `cumsum` has a form for each platform
)
ALLOWED = frozenset((*_ELEMENTWISE, *_SHAPING, *_REDUCTIONS, *_CONTROL))

_OUTSIDE = ("callback", "debug", "infeed", "outfeed", "device_put", "host", "print")


def require_allowed(equation: JaxprEqn) -> None:
    """Refuses one operation that is not in the list.

    Raises:
      Refused: with reason 'unbounded_loop', 'callback', 'custom_call' or 'nondeterministic'.
    """
    name = equation.primitive.name
    if name == "while":
        # A fixed count is traced to `scan`, whose length is known. A `while` runs as long as data
        # say, in lanes as long as the last one: its cost has no bound that could be certified.
        raise Refused(
            "unbounded_loop",
            "a loop whose count is not known while tracing; use a fixed count and jnp.where",
        )
    if any(word in name for word in _OUTSIDE) and name not in ALLOWED:
        raise Refused("callback", f"operation {name!r} leaves the computation")
    if name not in ALLOWED:
        raise Refused("custom_call", f"operation {name!r} is no plain arithmetic on arrays")
    if name.startswith("scatter"):
        _require_one_place(equation)


def _require_one_place(equation: JaxprEqn) -> None:
    """A GPU writes to several places at once, in any order: with duplicates results vary."""
    *places, _ = equation.invars[1].aval.shape
    if any(count != 1 for count in places):
        raise Refused(
            "nondeterministic",
            ".at[...] in many places; use a number, a slice without step, or jnp.where and a mask",
        )
