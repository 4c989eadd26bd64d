"""Counted cost: an optimizer costs only what its spec uses, and all other settings are free."""

import functools

import jax
import numpy as np
import pytest
from specs import random_spec

from nanoevolve_jax.execution import cost
from nanoevolve_jax.execution.cost import lowered_flops, optimizer_step, step_flops, structure
from nanoevolve_jax.execution.train import Task
from nanoevolve_jax.execution.uncounted import WEIGHTS
from nanoevolve_jax.model.gpt import GPTConfig, init_params
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.spec import (
    ANNEALING,
    CLIP_GLOBAL_NORM,
    CLIP_NONE,
    CLIP_UPDATE_RMS,
    FIELDS,
    NANOCHAT,
    TRUST_RATIO,
    get_field,
    set_field,
)

# The model is wide relative to its vocabulary, so AdamW's share of the cost is small.
MODEL = GPTConfig(sequence_len=16, vocab_size=265, n_layer=1, n_head=2, n_kv_head=2, n_embd=128)
TASK = Task(MODEL, batch_size=4)

BARE = NANOCHAT._replace(orthogonalize=0)
TWO_STEPS = NANOCHAT._replace(ns_steps=2)
CLIPPED = NANOCHAT._replace(clip=CLIP_UPDATE_RMS)


@functools.lru_cache
def lowered(spec):
    return lowered_flops(*optimizer_step(TASK, spec))


@functools.lru_cache
def compiled(spec):
    step, args = optimizer_step(TASK, spec)
    return jax.jit(step).lower(*args).compile().cost_analysis()["flops"]


def matrix_shapes():
    """Returns the shapes of the matrices that Muon trains, from the model's own parameters."""
    params = jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(params["blocks"])
    return [x.shape for path, x in leaves if "value_embed" not in jax.tree_util.keystr(path)]


def polar_flops(steps):
    """Returns the FLOPs of Polar Express: per step a Gram matrix, its square, and their product."""
    total = 0
    for m, n in matrix_shapes():
        short, long = min(m, n), max(m, n)
        per_step = 2 * short * short * long + 2 * short**3 + 2 * short * short * long
        total += steps * per_step
    return total


def test_every_matrix_of_the_model_is_known_here():
    # Four square matrices, two of the MLP, and the gate of the value embeddings.
    assert len(matrix_shapes()) == 4 + 2 + 1
    assert sum(np.prod(s) for s in matrix_shapes()) == MODEL.param_counts["transformer_matrices"]


COUNTS = pytest.mark.parametrize("count", [lowered, compiled], ids=["lowered", "compiled"])


@COUNTS
def test_orthogonalisation_costs_the_dots_of_polar_express_on_every_matrix(count):
    assert count(NANOCHAT) - count(BARE) == pytest.approx(polar_flops(5), rel=0.03)


@COUNTS
def test_without_orthogonalisation_the_optimizer_costs_under_a_twentieth(count):
    assert 0 < count(BARE) < 0.05 * count(NANOCHAT)


@COUNTS
def test_two_iterations_cost_two_fifths_of_five(count):
    assert count(TWO_STEPS) - count(BARE) == pytest.approx(polar_flops(2), rel=0.03)
    share = (count(TWO_STEPS) - count(BARE)) / (count(NANOCHAT) - count(BARE))
    assert share == pytest.approx(0.4, abs=0.01)


@COUNTS
def test_a_clip_costs_at_least_nothing_and_no_clip_is_the_baseline(count):
    entries = sum(np.prod(s) for s in matrix_shapes())
    assert count(NANOCHAT._replace(clip=CLIP_NONE)) == count(NANOCHAT)
    # Each entry costs a square, a sum and a division, apart from operations that are fused.
    assert entries < count(CLIPPED) - count(NANOCHAT) < 12 * entries


def test_each_iteration_costs_the_same():
    costs = [lowered(NANOCHAT._replace(ns_steps=n)) for n in range(1, 6)]
    np.testing.assert_allclose(np.diff(costs), polar_flops(1), rtol=0.03)


@pytest.mark.parametrize(
    ("cheap", "dear"),
    [
        (NANOCHAT, NANOCHAT._replace(clip=CLIP_GLOBAL_NORM)),
        (NANOCHAT, TRUST_RATIO),
        (NANOCHAT, ANNEALING),
        (NANOCHAT._replace(second_moment=0), NANOCHAT),
        (NANOCHAT._replace(nesterov=0), NANOCHAT),
        (NANOCHAT._replace(decay=0), NANOCHAT._replace(decay=1)),
        (NANOCHAT._replace(decay=1), NANOCHAT),
    ],
)
def test_what_is_switched_off_costs_nothing_and_what_is_on_something(cheap, dear):
    assert lowered(cheap) < lowered(dear)


def test_a_traced_spec_pays_for_every_branch():
    def traced(spec, *args):
        return optimizer_step(TASK, spec)[0](*args)

    args = optimizer_step(TASK, NANOCHAT)[1]
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), np.result_type(x)), NANOCHAT)
    everything = lowered_flops(traced, (spec, *args))
    rng = np.random.default_rng(0)
    for known in [NANOCHAT, ANNEALING, TRUST_RATIO, CLIPPED, *[random_spec(rng) for _ in range(3)]]:
        assert everything > lowered(known)


# Operations that XLA does not count --------------------------------------------------------


def flops_of(function, size=64):
    return lowered_flops(function, (jax.ShapeDtypeStruct((size,), np.float32),))


@pytest.mark.parametrize("name", ["sin", "cos", "exp", "log1p", "tanh", "sqrt", "cbrt"])
def test_a_transcendental_function_costs_more_than_a_multiplication(name):
    function = getattr(jax.numpy, name)
    assert flops_of(function) == WEIGHTS[name] * 64 > flops_of(lambda x: 1.5 * x) == 64
    three = flops_of(lambda x: function(function(function(x))))
    looped = flops_of(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: function(x), x))
    assert three == 3 * flops_of(function)
    assert looped == pytest.approx(three, abs=64)  # three times the cost and the loop counter


def test_a_sort_costs_more_than_its_length():
    one, two = (flops_of(jax.numpy.sort, n) for n in (256, 512))
    assert one > 256 * 8 * 50
    assert two == pytest.approx(2 * one * 9 / 8)


@pytest.mark.parametrize("dtype", ["uint32", "int32", "bool"])
def test_a_product_of_integers_costs_more_than_one_of_floats(dtype):
    def product(x, dtype="float32"):
        square = x.reshape(8, 8).astype(dtype)
        return jax.numpy.matmul(square, square).astype("float32")

    assert flops_of(lambda x: product(x, dtype)) > 50 * flops_of(product)


def test_powers_and_remainders_are_counted_whatever_they_are_called():
    for function in (lambda x: x**0.7, lambda x: jax.numpy.atan2(x, 0.5), lambda x: x % 0.3):
        assert flops_of(function) >= 50 * 64


def test_what_xla_does_not_count_is_little_of_a_step():
    step, args = optimizer_step(TASK, ANNEALING)
    counted = jax.jit(step).lower(*args).cost_analysis()["flops"]
    assert counted < lowered(ANNEALING) < 1.01 * counted


# The cost of a step ------------------------------------------------------------------------


def test_a_step_costs_the_model_and_the_optimizer():
    model = MODEL.flops_per_token * 4 * 16
    assert step_flops(TASK, NANOCHAT) == model + lowered(NANOCHAT)


NUMBERS = [p for p, f in FIELDS.items() if not f.integer and not p.endswith("orthogonal_mix")]


def everything_on():
    return set_field(NANOCHAT._replace(trust_ratio=1, clip=CLIP_GLOBAL_NORM), "control.enabled", 1)


def test_no_number_changes_the_operations():
    # Operations are compared too, because a cache could also make the costs equal.
    spec = everything_on()
    other = spec
    for path in NUMBERS:
        field = FIELDS[path]
        value = get_field(spec, path)
        other = set_field(other, path, field.low + 0.37 * (field.high - field.low))
        assert get_field(other, path) != value
    assert lowered(spec) == lowered(other)


def test_specs_of_one_structure_cost_the_same(monkeypatch):
    counted = []
    real = cost.lowered_flops
    monkeypatch.setattr(cost, "lowered_flops", lambda *a: counted.append(1) or real(*a))
    cost._optimizer_flops.cache_clear()
    costs = {
        step_flops(TASK, set_field(everything_on(), path, x))
        for path in ("control.bias", "control.aggressive.update_multiplier", "momentum")
        for x in (0.3, 0.4, 0.5)
    }
    assert len(costs) == 1
    assert len(counted) == 1  # nine specs share one lowering


def test_the_structure_of_any_spec_costs_what_the_spec_costs():
    rng = np.random.default_rng(1)
    for _ in range(6):
        spec = random_spec(rng)
        # A factor of exactly 1 is dropped, which saves one product per entry. A few products of
        # scalars also differ.
        saved = lowered(canonical(spec)) - lowered(structure(spec))
        assert -100 <= saved <= sum(np.prod(s) for s in matrix_shapes()) + 100
        assert lowered(canonical(spec)) <= lowered(spec) + 100


def test_no_learning_rate_changes_the_cost(monkeypatch):
    before = lowered_flops(*optimizer_step(TASK, NANOCHAT))
    recipe = cost._ANY_RECIPE._replace(matrix_lr=0.003, weight_decay=0.5, warmdown_fraction=0.9)
    monkeypatch.setattr(cost, "_ANY_RECIPE", recipe)
    assert lowered_flops(*optimizer_step(TASK, NANOCHAT)) == before
