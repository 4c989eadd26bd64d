"""Answers of a scripted provider, computed from a proposal's number and its try.

`PLAN` lists the kinds of 30 proposals. Every third one is broken or hostile. Good answers contain
complete functions, so they apply to every descendant of the built-in function, no matter which
proposals were accepted before. Each contains a different number, so no two compute the same result.

`EXPECTED` is the outcome of each kind: 'good', 'second' (only the second try is good), 'dead'
(harmless code that ruins training), 'inert', 'failed' (no answer), 'edit' (no source) or 'refused'.
"""

_MOMENTUM = """\
Momentum and its look-ahead need not have the same coefficient.

```python
def momentum_step(x, buffer, knobs):
    buffer = buffer + (1.0 - knobs.momentum) * (x - buffer)
    ahead = x + {share} * (buffer - x)
    return (jnp.where(knobs.nesterov, ahead, buffer), buffer)
```
"""
_MIXED = """\
A little of the raw direction beside its orthogonal factor.

```python
def mixed_with_raw(orthogonal, raw):
    return {share} * orthogonal + (1.0 - {share}) * raw


def orthogonal_or_raw(x, knobs):
    x = prescale(x)
    y = equilibrate(x.astype(compute_dtype).astype(jnp.float32))
    y = y / (norm(y) * 1.01 + SMALL_NORM)
    y = polar_express(y.astype(compute_dtype), knobs.ns_steps)
    raw = renormalise(x)
    orthogonal = renormalise(mixed_with_raw(renormalise(y.astype(jnp.float32)), raw))
    mix = knobs.orthogonal_mix
    mixed = jnp.where(mix >= 1.0, orthogonal, mix * orthogonal + (1.0 - mix) * raw)
    return jnp.where(knobs.orthogonalize, mixed, raw)
```
"""
_SCALED = """\
Shorter steps for long matrices.

```python
LONG = {share}


def renormalise(x):
    inputs, outputs = x.shape
    share = LONG if outputs > inputs else 1.0
    return x * (share * math.sqrt(min(inputs, outputs)) / jnp.maximum(norm(x), SMALL_NORM))
```
"""
_VARIANCE = """\
A weaker normalisation of the variance.

```python
def normalise_variance(u, second_moment, beta):
    inputs, outputs = u.shape
    axis = 0 if outputs >= inputs else 1
    size = u.shape[axis]
    square = jnp.mean(jnp.square(u), axis=axis, keepdims=True)
    second_moment = second_moment + (1.0 - beta) * (square - second_moment)
    step = jnp.power(jnp.maximum(second_moment, 1e-10), -0.5 * {share})
    before = jnp.sqrt(jnp.sum(square) * size)
    after = jnp.sqrt(jnp.sum(square * size * jnp.square(step)))
    return (u * (step * (before / jnp.maximum(after, 1e-10))), second_moment)
```
"""
_SEARCHED = """\
A safety factor before the iteration.

<<<<<<< SEARCH
    y = y / (norm(y) * 1.01 + SMALL_NORM)
=======
    y = y / (norm(y) * {factor} + SMALL_NORM)
>>>>>>> REPLACE
"""
_BODY = """\
```python
def direction(gradient, momentum, second_moment, parameter, knobs):
{body}
    return (gradient, momentum, second_moment)
```
"""


def _body(*lines: str) -> str:
    return _BODY.format(body="\n".join(f"    {line}" for line in lines))


GOOD = {
    "nesterov": _MOMENTUM,
    "mixed": _MIXED,
    "scaled": _SCALED,
    "variance": _VARIANCE,
    "searched": _SEARCHED,
}
BROKEN = {
    "prose": "The momentum should look further ahead, but I leave the details to you.",
    "not_found": "<<<<<<< SEARCH\n    y = newton_schulz(x)\n=======\n    y = x\n>>>>>>> REPLACE\n",
    "syntax": _body("update = = gradient"),
    "import": _body("import os", "os.system('touch /tmp/nanoevolve_was_here')"),
    "endless": _body("while True:", "    pass"),
    "callback": _body("host = jax.pure_callback(gradient)"),
    "shape": _body("gradient = gradient.T @ gradient"),
    "non_finite": _body("gradient = jnp.log(-1.0 - jnp.abs(gradient))"),
    "runaway": _body(
        "second_moment = second_moment * 1e6 + 1.0", "gradient = gradient * jnp.max(second_moment)"
    ),
    "inert": (
        "```python\ndef norm(values):\n    squares = jnp.square(values)\n"
        "    return jnp.sqrt(jnp.sum(squares))\n```"
    ),
    "fails": "",
}
PLAN = (
    *("nesterov", "mixed", "prose", "scaled", "variance", "import"),
    *("searched", "nesterov", "endless", "mixed", "scaled", "shape"),
    *("variance", "searched", "non_finite", "nesterov", "mixed", "syntax"),
    *("scaled", "variance", "runaway", "searched", "nesterov", "not_found"),
    *("inert", "scaled", "callback", "variance", "nesterov", "fails"),
)
REASONS = {
    "import": "import",
    "endless": "syntax",
    "callback": "callback",
    "shape": "shape",
    "non_finite": "non_finite",
}
"""Reasons of refusals, by kind."""
_SECOND = ("prose", "not_found")
EXPECTED = (
    dict.fromkeys(GOOD, "good")
    | dict.fromkeys(REASONS, "refused")
    | dict.fromkeys(_SECOND, "second")
    | {"syntax": "edit", "runaway": "dead", "inert": "inert", "fails": "failed"}
)


def answer(number: int, try_: int) -> str | None:
    """Returns the answer for the slot `direction`, or None if the provider fails."""
    kind = PLAN[number % len(PLAN)]
    if kind == "fails":
        return None
    if kind in BROKEN and not (kind in _SECOND and try_ == 2):
        return BROKEN[kind]
    text = GOOD.get(kind, _MOMENTUM)
    share = round(0.995 - 0.004 * (number % 60), 3)
    return text.replace("{share}", f"{share}").replace("{factor}", f"{round(2.0 - share, 3)}")
