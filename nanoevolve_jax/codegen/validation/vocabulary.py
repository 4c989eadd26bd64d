"""Names and attributes that a source may use in addition to its own definitions."""

_BUILTINS = """
abs all any bool enumerate float int len list max min range reversed round sorted sum tuple zip
"""
_ELEMENTWISE = """
abs absolute add arctan2 bitwise_and bitwise_or bitwise_xor cbrt ceil clip copysign cos divide equal
exp exp2 expm1 float_power floor fmax fmin greater greater_equal heaviside hypot invert isfinite
isinf isnan less less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or
logical_xor maximum minimum mod multiply nan_to_num negative not_equal positive power reciprocal
remainder round sign signbit sin sinc sqrt square subtract tanh true_divide trunc where
"""
_REDUCTIONS = """
all any argmax argmin average count_nonzero cumprod cumsum max mean median min nanmax nanmean nanmin
nansum prod ptp std sum var percentile quantile
"""
_SHAPING = """
arange argsort array asarray astype atleast_1d atleast_2d broadcast_to concatenate diag diagonal
diff expand_dims eye flip full full_like hstack identity linspace matrix_transpose moveaxis ones
ones_like pad permute_dims ravel repeat reshape roll sort split squeeze stack swapaxes take
take_along_axis tile transpose tril triu vstack zeros zeros_like
"""
_PRODUCTS = "cross dot einsum inner kron matmul outer tensordot trace vdot vecdot"
_CONSTANTS = "bfloat16 bool_ e float32 inf int32 newaxis pi uint32"
_JNP = f"{_ELEMENTWISE} {_REDUCTIONS} {_SHAPING} {_PRODUCTS} {_CONSTANTS}"
_LINALG = "diagonal matrix_norm norm outer trace vector_norm"
_LAX = """
abs add bitcast_convert_type broadcast broadcast_in_dim cbrt ceil clamp concatenate cond
convert_element_type cos cummax cummin cumprod cumsum div dot dynamic_slice dynamic_slice_in_dim
dynamic_update_slice eq exp exp2 expm1 expand_dims floor fori_loop full_like ge gt integer_pow iota
is_finite le log log1p logistic lt max min mul ne neg optimization_barrier pad pow reciprocal rem
reshape rev round rsqrt scan select sign sin slice slice_in_dim sort sqrt square squeeze
stop_gradient sub switch tanh transpose
"""
_NN = """
celu elu gelu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log_sigmoid log_softmax
logsumexp relu relu6 selu sigmoid silu soft_sign softmax softplus squareplus standardize swish tanh
"""
_MATH = """
acos asin atan atan2 ceil copysign cos e exp floor fsum hypot inf isfinite isqrt log log10 log1p
log2 pi pow prod sin sqrt tan tanh tau
"""
BUILTINS = tuple(_BUILTINS.split())
MODULES = {
    name: tuple(names.split())
    for name, names in {
        "jnp": _JNP,
        "jnp.linalg": _LINALG,
        "lax": _LAX,
        "jax.nn": _NN,
        "jax.lax": _LAX,
        "jax.numpy": _JNP,
        "jax.numpy.linalg": _LINALG,
        "math": _MATH,
    }.items()
}
"""Allowed names of each module; a module itself is not a value that a source can use."""
ROOTS = frozenset(path.split(".")[0] for path in MODULES)
CONSTANTS = ("compute_dtype",)
"""Constants of the task: jnp.float32 or jnp.bfloat16."""

_ARRAY_ATTRIBUTES = """
T mT at dtype ndim shape size all any argmax argmin astype clip cumprod cumsum diagonal dot flatten
max mean min prod ravel repeat reshape round squeeze std sum swapaxes trace transpose var
add divide get mul multiply power set subtract
"""
ARRAY_ATTRIBUTES = tuple(_ARRAY_ATTRIBUTES.split())
"""Allowed attributes of arrays; the last row is of `x.at[...]`."""

_HINTS = {
    ("unbounded_loop", "use lax.fori_loop or lax.scan with a fixed count"): "while_loop",
    ("custom_call", "decompositions run as calls into libraries"): """
        cholesky det eig eigh eigvals eigvalsh expm inv lstsq lu matrix_rank pinv polar qr schur
        slogdet solve svd svdvals""",
    ("callback", "results come from arguments alone"): """
        callback debug device_get device_put experimental io_callback infeed outfeed print
        pure_callback""",
}
HINTS = {name: hint for hint, names in _HINTS.items() for name in names.split()}
"""Attributes of modules that are refused for a reason of their own, with that reason and a hint."""
