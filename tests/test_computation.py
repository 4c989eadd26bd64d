"""The hash of a computation depends on the computation and not on the way it is written."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from nanoevolve_jax.codegen.validation.computation import computation_hash, graph

X = jax.ShapeDtypeStruct((3, 3), jnp.float32)
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "matmul": lambda a, b: a @ b,
    "max": jnp.maximum,
    "where": lambda a, b: jnp.where(a > b, a, 0.5 * b),
}
COMMUTATIVE = ("add", "mul", "max")
OPERATIONS = st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 99), st.integers(0, 99))
PROGRAMS = st.lists(OPERATIONS, min_size=1, max_size=8)


def hashed(function, arguments=2):
    return graph(jax.make_jaxpr(function)(*[X] * arguments))


def linked(program):
    """Returns (operation, left, right) triples; 0 and 1 index the arguments."""
    return [
        (name, left % (i + 2), right % (i + 2)) for i, (name, left, right) in enumerate(program)
    ]


def run(program, order=None, swapped=(), helpers=False, dead=False, constant=None):
    """Returns a function that computes a program in one of several equivalent forms."""
    order = range(len(program)) if order is None else order

    def function(x, y):
        values = {0: x, 1: y}
        for i in order:
            name, left, right = program[i]
            operation = jax.jit(BINARY[name]) if helpers else BINARY[name]
            pair = (values[left], values[right])
            values[i + 2] = operation(*pair[::-1] if i in swapped else pair)
            if dead:
                jnp.sin(values[i + 2]) + 17.0
        result = values[len(program) + 1]
        return result if constant is None else result * constant

    return function


@st.composite
def _orders(draw, program):
    """Draws another order in which every operation follows the operations that it needs."""
    left, order = set(range(len(program))), []
    while left:
        ready = [i for i in sorted(left) if all(x - 2 not in left for x in program[i][1:])]
        order.append(draw(st.sampled_from(ready)))
        left.remove(order[-1])
    return order


@given(PROGRAMS, st.data())
@settings(max_examples=25)
def test_the_way_a_computation_is_written_leaves_no_trace(operations, data):
    program = linked(operations)
    order = data.draw(_orders(program))
    commuting = [i for i, (name, _, _) in enumerate(program) if name in COMMUTATIVE]
    swapped = [i for i in commuting if data.draw(st.booleans())]
    written = run(program, order, swapped, data.draw(st.booleans()), data.draw(st.booleans()))
    assert hashed(written) == hashed(run(program))


@given(PROGRAMS, PROGRAMS)
@settings(max_examples=25)
def test_equal_hashes_mean_equal_results(first, second):
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(2, 3, 3)).astype(np.float32)
    functions = run(linked(first)), run(linked(second))
    results = [np.asarray(f(*arrays)) for f in functions]
    if not np.array_equal(*results):
        assert hashed(functions[0]) != hashed(functions[1])


@given(PROGRAMS, st.floats(0.5, 2.0, width=32), st.floats(0.5, 2.0, width=32))
@settings(max_examples=15)
def test_a_constant_counts_by_its_value(operations, first, second):
    program = linked(operations)
    same = hashed(run(program, constant=first)) == hashed(run(program, constant=second))
    assert same == (first == second)


DIFFERENT = {
    "operator": (lambda x, y: x + y, lambda x, y: x * y),
    "operands of subtract": (lambda x, y: x - y, lambda x, y: y - x),
    "operands of divide": (lambda x, y: x / y, lambda x, y: y / x),
    "operands of matmul": (lambda x, y: x @ y, lambda x, y: y @ x),
    "arguments": (lambda x, y: jnp.sin(x), lambda x, y: jnp.sin(y)),
    "order of results": (lambda x, y: (x, y), lambda x, y: (y, x)),
    "number of results": (lambda x, y: x, lambda x, y: (x, x)),
    "axis": (lambda x, y: jnp.sum(x, axis=0), lambda x, y: jnp.sum(x, axis=1)),
    "sides of compare": (lambda x, y: x < y, lambda x, y: y < x),
    "strictness": (lambda x, y: x < y, lambda x, y: x <= y),
    "dtype": (lambda x, y: x.astype(jnp.bfloat16), lambda x, y: x.astype(jnp.float16)),
    "power": (lambda x, y: x**2, lambda x, y: x**3),
    "sign of zero": (lambda x, y: x * 0.0, lambda x, y: x * -0.0),
    "array": (lambda x, y: x * jnp.array([1.0, 2, 3]), lambda x, y: x * jnp.array([1.0, 2, 4])),
    "branch of where": (lambda x, y: jnp.where(x > 0, x, y), lambda x, y: jnp.where(x > 0, y, x)),
    "length of a loop": (
        lambda x, y: lax.fori_loop(0, 3, lambda i, c: c * y, x),
        lambda x, y: lax.fori_loop(0, 4, lambda i, c: c * y, x),
    ),
    "body of a loop": (
        lambda x, y: lax.fori_loop(0, 3, lambda i, c: c - y, x),
        lambda x, y: lax.fori_loop(0, 3, lambda i, c: y - c, x),
    ),
    "branch of cond": (
        lambda x, y: lax.cond(x[0, 0] > 0, lambda: x, lambda: y),
        lambda x, y: lax.cond(x[0, 0] > 0, lambda: y, lambda: x),
    ),
    "slice": (lambda x, y: x[0], lambda x, y: x[1]),
    "place of an update": (lambda x, y: x.at[0].set(1.0), lambda x, y: x.at[1].set(1.0)),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_whatever_changes_the_results_changes_the_hash(pair):
    assert hashed(pair[0]) != hashed(pair[1])


SAME = {
    "sides of compare": (lambda x, y: x < y, lambda x, y: y > x),
    "dead work": (lambda x, y: x + y, lambda x, y: (jnp.linalg.svd(x), x + y)[1]),
    "helper of jax.nn": (lambda x, y: jax.nn.relu(x), lambda x, y: jnp.maximum(x, 0.0)),
    "conversion to its own dtype": (lambda x, y: x, lambda x, y: x.astype(jnp.float32)),
    "names in a loop": (
        lambda x, y: lax.fori_loop(0, 3, lambda i, c: c * y + x, x),
        lambda x, y: lax.fori_loop(0, 3, lambda k, z: (lambda u: x + u)(y * z), x),
    ),
    "names in branches": (
        lambda x, y: lax.cond(x[0, 0] > 0, lambda a: a + y, lambda a: a, x),
        lambda x, y: lax.cond(x[0, 0] > 0, lambda b: y + b, lambda b: b, x),
    ),
    "shared work": (
        lambda x, y: (x @ y) + (x @ y),
        lambda x, y: (lambda p: p + p)(x @ y),
    ),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_what_changes_nothing_leaves_the_hash_alone(pair):
    assert hashed(pair[0]) == hashed(pair[1])


def test_shapes_of_arguments_count():
    small, large = (jax.ShapeDtypeStruct((n, n), jnp.float32) for n in (2, 3))
    assert graph(jax.make_jaxpr(jnp.sin)(small)) != graph(jax.make_jaxpr(jnp.sin)(large))


def test_a_function_is_all_of_its_shapes():
    one, two = (jax.make_jaxpr(f)(X) for f in (jnp.sin, jnp.cos))
    whole = computation_hash({"3x3": one, "4x4": two})
    assert whole == computation_hash({"4x4": two, "3x3": one})
    assert whole != computation_hash({"3x3": two, "4x4": one})
    assert whole != computation_hash({"3x3": one})


def test_the_hash_is_the_same_in_every_process(repository):
    program = (
        "import jax, jax.numpy as jnp;"
        "from nanoevolve_jax.codegen.validation.computation import graph;"
        "f = lambda x: jax.lax.scan(lambda c, _: (jax.nn.silu(c).at[0].add(1.0), c), x, None, 3);"
        "print(graph(jax.make_jaxpr(f)(jax.ShapeDtypeStruct((3, 3), jnp.float32))))"
    )

    def fresh(seed):
        child = subprocess.run(
            [sys.executable, "-c", program],
            cwd=repository,
            env={"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            check=True,
            timeout=60,
        )
        return child.stdout

    assert fresh("1") == fresh("2") != b""
