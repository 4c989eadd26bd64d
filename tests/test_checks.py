"""The checks that follow the text of a source: sources that pass, and reasons for refusal."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

from nanoevolve_jax.codegen.sandbox import certify, runner, worker
from nanoevolve_jax.codegen.validation import checks, language, tracing, vocabulary
from nanoevolve_jax.codegen.validation.computation import graph
from nanoevolve_jax.codegen.validation.costs import cost_of, equations, exported, require_bounded
from nanoevolve_jax.codegen.validation.refusals import REASONS, Refused
from nanoevolve_jax.codegen.validation.tracing import traced
from nanoevolve_jax.codegen.validation.trial import Inputs, inputs_of, require_sound
from nanoevolve_jax.policy import muon
from nanoevolve_jax.policy.certified import FORMAT, Certified, digest
from nanoevolve_jax.policy.slots import SLOTS, Knobs, built_in_source
from nanoevolve_jax.policy.spec import Sensors

SMALL = (8, 16)
MATRIX = jax.ShapeDtypeStruct(SMALL, jnp.float32)


def shapes_for(slot):
    return [SMALL] if slot == "direction" else [None]


def judged(source, slot, shapes=None, dtype="float32", max_cost=4.0):
    language.check(source, slot)
    return checks.check(source, slot, shapes or shapes_for(slot), dtype, max_cost)


def direction(*lines, update="gradient", momentum="momentum", second_moment="second_moment"):
    """Returns a source for `direction` with these lines before its result."""
    body = "".join(f"    {line}\n" for line in lines)
    result = f"    return {update}, {momentum}, {second_moment}\n"
    return f"def direction(gradient, momentum, second_moment, parameter, knobs):\n{body}{result}"


def features(first="0.0", *lines):
    """Returns a source for `features` with these lines before its result."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"def features(sensors):\n{body}    return ({first}, 0.0, 0.0, 0.0)\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("slot", SLOTS)
def test_the_built_in_functions_pass(slot, dtype):
    passed = judged(built_in_source(slot), slot, dtype=dtype)
    assert passed.computation == passed.seed_computation
    (program,) = passed.programs.values()
    assert program.flops == program.baseline_flops


def test_the_hash_tells_another_computation_from_another_way_to_write_one():
    blend = built_in_source("direction").replace(
        "x + knobs.momentum * (buffer", "x + 0.8 * (buffer"
    )
    passed = judged(blend, "direction")
    assert passed.computation != passed.seed_computation
    gate = built_in_source("gate").replace("weights", "w")
    passed = judged(gate.replace("control.bias + drive", "drive + control.bias"), "gate")
    assert passed.computation == passed.seed_computation


def test_what_passes_is_loaded_and_gives_the_built_in_optimizers_numbers():
    source = built_in_source("direction")
    passed = judged(source, "direction")
    programs = {key: program.content for key, program in passed.programs.items()}
    certificate = {
        "format": FORMAT,
        "slot": "direction",
        "dtype": "float32",
        "source_sha256": digest(source.encode()),
        "programs": {key: {"sha256": digest(content)} for key, content in programs.items()},
    }
    inputs = inputs_of("direction", SMALL).arguments
    # Only gradients of full rank, because the iteration amplifies the rounding of all others.
    full = [x[np.all(inputs[0] == inputs[0][:1], axis=(1, 2))] for x in inputs]
    assert len(full[0]) > 20
    loaded = Certified(source, certificate, programs).call(SMALL, *map(jnp.asarray, full))
    wanted = jax.jit(jax.vmap(muon.muon_step))(*full[:4], Knobs(*full[4:]))
    for ours, theirs in zip(loaded, wanted, strict=True):
        difference = jnp.linalg.norm((ours - theirs).reshape(len(ours), -1), axis=1)
        assert np.all(difference < 1e-5 * jnp.linalg.norm(theirs.reshape(len(ours), -1), axis=1))


SQUARE = "(gradient @ gradient.T @ gradient)"
REFUSED = {
    "a result is missing": ("shape", features().replace(", 0.0)", ")")),
    "a result is transposed": ("shape", direction(update="gradient.T")),
    "a scalar for a matrix": ("shape", direction(update="0.0")),
    "no result": ("shape", "def features(sensors):\n    pass\n"),
    "an integer": ("dtype", features("1")),
    "a boolean": ("dtype", features("sensors.loss_ema > 0.0")),
    "half precision": ("dtype", direction(update="gradient.astype(jnp.bfloat16)")),
    "a function as a result": ("dtype", features("jnp.sin")),
    "a dtype as a result": ("dtype", features("jnp.float32")),
    "a traced branch": ("trace", features("1.0 if sensors.loss_ema > 0 else 0.0")),
    "a number from an array": ("trace", features("float(sensors.loss_ema)")),
    "math on arrays": ("trace", features("math.sqrt(sensors.loss_ema)")),
    "shapes that do not fit": ("trace", direction(update="gradient @ gradient")),
    "no such field": ("trace", features("sensors.sharpness")),
    "used before it is there": ("trace", features("x", "x = x + 1.0")),
    "endless recursion": ("trace", features("f(1.0)", "f = lambda x: f(x)")),
    "division by zero": ("trace", features("1.0 / (1 - 1)")),
    "too many in a tuple": ("memory", features("sum((1.0,) * 4000000000 * 4000000000)")),
    "a loop over data": (
        "unbounded_loop",
        direction(
            "x = lax.fori_loop(0, knobs.ns_steps, lambda i, x: x * 0.5, gradient)", update="x"
        ),
    ),
    "work in a loop": (
        "cost",
        direction(
            f"f = lambda i, gradient: {SQUARE}",
            "x = lax.fori_loop(0, 500, f, gradient)",
            update="x",
        ),
    ),
    "work in a row": (
        "cost",
        direction("x = gradient", *["x = x @ x.T @ x"] * 40, update="x"),
    ),
    "a giant array": (
        "memory",
        direction("x = jnp.sum(jnp.ones((100000, 100000)))", update="gradient * x"),
    ),
    "giant constants": (
        "constant",
        features("jnp.sum(jnp.array([i * 0.5 for i in range(9000)] * 4))"),
    ),
    "too many operations": (
        "too_long",
        features("sum(sensors.loss_ema * i for i in range(4000))"),
    ),
    "a norm by decomposition": (
        "custom_call",
        direction(update="gradient / jnp.linalg.norm(gradient, 2)"),
    ),
    "writes to places that may be the same": (
        "nondeterministic",
        direction(update="gradient.at[jnp.array([0, 0])].add(1.0)"),
    ),
    "not finite": ("non_finite", direction(update="gradient / jnp.sum(jnp.abs(gradient))")),
    "not finite for the huge": ("non_finite", direction(update="gradient ** 8")),
    "not finite in a corner": ("non_finite", features("jnp.log(sensors.loss_ema + 1.0)")),
    "not finite when a switch is off": (
        "non_finite",
        direction(update="jnp.where(knobs.nesterov, gradient, jnp.inf)"),
    ),
}


def reason_of(function, *arguments, **options):
    with pytest.raises(Refused) as caught:
        function(*arguments, **options)
    assert caught.value.refusal.reason in REASONS
    return caught.value.refusal.reason


@pytest.mark.parametrize(("reason", "source"), REFUSED.values(), ids=REFUSED)
def test_a_broken_or_costly_source_is_refused_with_its_reason(reason, source):
    slot = "direction" if source.startswith("def direction") else "features"
    assert reason_of(judged, source, slot) == reason


def test_much_memory_is_refused_where_arithmetic_is_cheap():
    many = ", ".join(f"jnp.sin(gradient * {i}.0) @ square" for i in range(24))
    lines = ("square = gradient.T @ gradient", f"x = jnp.sort(jnp.stack([{many}]), axis=0)")
    source = direction(*lines, update="x[3] * x[5]")
    assert reason_of(judged, source, "direction", [(64, 64)], max_cost=50.0) == "memory"


def test_a_function_that_is_traced_differently_each_time_is_refused():
    """The language cannot express such a function, but the check does not rely on that."""
    source = "CALLS = [1.0]\ndef grow(calls):\n    calls += [1.0]\n    return len(calls) * 1.0\n"
    source += features("sensors.loss_ema * grow(CALLS)")
    assert reason_of(traced, source, "features", None, "float32") == "nondeterministic"


def test_tracing_has_a_time_limit_and_ranges_have_a_length(monkeypatch):
    monkeypatch.setattr(tracing, "TRACING_SECONDS", 0.3)
    nested = "sum(1.0 for i in range(9999) for j in range(9999) for k in range(9999))"
    assert reason_of(judged, features(nested), "features") == "endless"
    for steps in ("4000000000", "9**99"):
        with pytest.raises(Refused, match="at most 10000 steps"):
            judged(features("0.0", f"for x in range({steps}):", "    pass"), "features")


def test_a_refusal_names_the_line_that_was_running():
    with pytest.raises(Refused, match=r"^line 2: "):
        judged(features("0.0", "x = gradient", "gradient = 1"), "features")


def _print(x):
    jax.debug.print("{}", x)
    return x


_LATER = jax.extend.core.Primitive("later")  # stands for an operation of a future JAX version
_LATER.def_abstract_eval(lambda x: x)
FOREIGN = {
    "debug print": _print,
    "ordered callback": lambda x: io_callback(lambda y: y, MATRIX, x, ordered=True),
    "pure callback": lambda x: jax.pure_callback(lambda y: y, MATRIX, x),
    "callback in a loop": lambda x: lax.fori_loop(0, 3, lambda i, y: _print(y), x),
    "callback in a branch": lambda x: lax.cond(x[0, 0] > 0, _print, lambda y: y, x),
    "decomposition": lambda x: jnp.linalg.qr(x)[0],
    "while": lambda x: lax.while_loop(lambda y: y[0, 0] < 1.0, lambda y: y * 2.0, x),
    "unknown operation": _LATER.bind,
}


@pytest.mark.parametrize("function", FOREIGN.values(), ids=FOREIGN)
def test_an_operation_beyond_arithmetic_is_refused(function):
    with pytest.raises(Refused):
        closed = jax.make_jaxpr(function)(MATRIX)
        require_bounded(closed)
        exported(closed)


def looped(outer, inner=1):
    def body(x):
        return lax.fori_loop(0, inner, lambda i, y: y @ y.T @ y, x)

    return jax.make_jaxpr(lambda x: lax.fori_loop(0, outer, lambda i, y: body(y), x))(MATRIX)


def test_a_loop_costs_its_count_and_has_a_bound():
    matmul = 2 * 8 * 16 * 8 * 2
    assert cost_of(looped(1)).flops == pytest.approx(matmul, rel=0.1)
    assert cost_of(looped(5)).flops == pytest.approx(5 * matmul, rel=0.1)
    require_bounded(looped(30, 30))
    for counts in ((1, 1001), (1001, 1), (40, 40)):
        assert reason_of(require_bounded, looped(*counts)) == "cost"


def test_a_program_must_be_finite_repeatable_and_blind_to_other_lanes():
    inputs = Inputs(("a", "b"), (np.ones((2, 3), np.float32),))
    count = itertools.count(1.0)
    same, infinite = lambda x: [x], lambda x: [x * np.inf]

    def reason(program):
        return reason_of(require_sound, program, same, inputs, ["update"])

    assert reason(lambda x: [x * next(count)]) == "nondeterministic"
    assert reason(lambda x: [x * np.mean(x)]) == "effect"
    assert reason(infinite) == "non_finite"
    require_sound(infinite, infinite, inputs, ["update"])  # the built-in function is infinite too


@pytest.mark.parametrize("slot", SLOTS)
def test_inputs_have_the_form_of_the_contract_and_every_corner(slot):
    inputs = inputs_of(slot, shapes_for(slot)[0])
    contract = jax.tree.leaves(SLOTS[slot].arguments(shapes_for(slot)[0]))
    for array, like in zip(inputs.arguments, contract, strict=True):
        assert array.shape == (len(inputs.names), *like.shape)
        assert array.dtype == like.dtype
        assert np.isfinite(array).all()
    if slot == "features":
        rows = np.stack(inputs.arguments, axis=1)
        assert len({tuple(row) for row in rows}) == 3 ** len(Sensors._fields)
    if slot == "direction":
        assert all(len(np.unique(knob)) > 1 for knob in inputs.arguments[4:])
        assert set(inputs.arguments[13]) == {1, 2, 3, 4, 5}
        assert len(inputs_of(slot, (512, 4096), 4).names) == 4
        assert len(inputs_of(slot, (8, 8), 0).names) == 3


CALLS = (
    *(lambda f, x: f(x), lambda f, x: f(x, x), lambda f, x: f(x > 0, x, x)),
    *(lambda f, x: f((x, x)), lambda f, x: f(x, 2), lambda f, x: f(x > 0, x > 1)),
    *(lambda f, x: f(x, (36,)), lambda f, x: f(3), lambda f, x: f((3, 3), 1.0)),
    *(lambda f, x: f(x, jnp.int32), lambda f, x: f(x, (0, 1)), lambda f, x: f(x, 0, 1)),
    *(lambda f, x: f(0.0, 1.0, 5), lambda f, x: f(jnp.float32, 4), lambda f, x: f(-1.0, x, 1.0)),
    *(lambda f, x: f(x, jnp.zeros((1, 6), jnp.int32), 0), lambda f, x: f(x, (0, 0), (2, 2))),
    *(lambda f, x: f(x, x, (0, 0)), lambda f, x: f(x[:, :3], x[:, :3]), lambda f, x: f(x, 0.5)),
    *(lambda f, x: f(x, 0.0, ((0, 0, 0), (0, 0, 0))), lambda f, x: f(x[0], (6, 6))),
    *(lambda f, x: f((x, x), 0), lambda f, x: f(x[:1], (0,)), lambda f, x: f(x[0], x[0])),
    *(lambda f, x: f(x, (6, 6, 6), (0, 1)), lambda f, x: f(x > 0), lambda f, x: f(x, 1, 2)),
    lambda f, x: f(jnp.int32(3), jnp.int32(4)),
    lambda f, x: f(lambda c, _: (c * 2, c), x, None, 3),
    lambda f, x: f(0, 3, lambda i, c: c * 2, x),
    lambda f, x: f(x[0, 0] > 0, lambda c: c, lambda c: -c, x),
    lambda f, x: f(1, (lambda c: c, lambda c: -c), x),
)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["jnp", "jnp.linalg", "lax", "jax.nn"])
def test_every_allowed_function_is_plain_arithmetic_in_every_use(module):
    holder = {"jnp": jnp, "jnp.linalg": jnp.linalg, "lax": lax, "jax.nn": jax.nn}[module]
    useless = []
    for name in vocabulary.MODULES[module]:
        function = getattr(holder, name)
        uses = 0
        for call in CALLS if callable(function) else ():
            try:
                flat = lambda x, f=function, call=call: jax.tree.leaves(call(f, x))  # noqa: E731
                closed = jax.make_jaxpr(flat)(jax.ShapeDtypeStruct((6, 6), jnp.float32))
            except Exception:  # arguments that this function does not take
                continue
            if any(equation.primitive.name == "svd" for equation, _ in equations(closed)):
                continue  # a norm of order 2, which another test shows to be refused
            require_bounded(closed)
            assert graph(closed) == graph(
                jax.make_jaxpr(flat)(jax.ShapeDtypeStruct((6, 6), jnp.float32))
            )
            try:
                exported(closed)
            except Refused as error:  # for example an index that JAX itself cannot lower
                assert error.refusal.reason == "trace"
                continue
            uses += 1
        if callable(function) and not uses:
            useless.append(name)
    assert not useless


def test_the_worker_returns_programs_without_any_path_in_another_process():
    """Another process in another folder returns the same bytes."""
    request = {"slot": "gate", "source": built_in_source("gate"), "shapes": [None]}
    request |= {"tried": [None], "dtype": "float32", "max_cost": 4.0}
    isolation = runner.isolation(runner.AVAILABLE)
    message = json.dumps(("validate", request)).encode()
    outcome = runner.run(certify.WORKER, message, runner.Limits(), isolation)
    accepted = certify.accepted_by(outcome, runner.Limits())
    here = judged(built_in_source("gate"), "gate")
    assert accepted.computation == here.computation
    assert accepted.checks == list(checks.PASSED)
    content = accepted.programs["scalar"].content
    assert content == here.programs["scalar"].content
    assert b".py" not in content


@pytest.mark.parametrize(
    "changes",
    [
        {"slot": "nowhere"},
        {"source": features("f(1.0)", "f = lambda x: f(x)")},
        {"dtype": "float99"},
    ],
)
def test_the_worker_refuses_what_it_cannot_trace(changes):
    request = {"slot": "features", "source": features(), "shapes": [None], "tried": [None]}
    result = worker.validate(**request | {"dtype": "float32", "max_cost": 4.0} | changes)
    assert result["refusal"]["reason"] == "trace"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_built_in_direction_passes_at_a_models_shapes(dtype):
    shapes = [(64, 64), (64, 256), (256, 64)]
    passed = judged(built_in_source("direction"), "direction", shapes, dtype)
    assert sorted(passed.programs) == ["256x64", "64x256", "64x64"]
