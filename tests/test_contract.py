"""Policies and exported files keep the contract that a training loop written for AdamW expects.

Every check also runs on optax.adamw, which shows that the check itself is correct.
"""

import functools
import warnings
from typing import NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from specs import EVERYTHING

import nanoevolve_jax as ne
from nanoevolve_jax.exports.source import source_of
from nanoevolve_jax.exports.stepping import load_module
from nanoevolve_jax.policy.drop_in import LAYOUTS
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

STEPS = 10
LR = 0.1


@functools.cache
def module_of(spec):
    return load_module(source_of(spec, "optax", "policy"))


def exported(spec):
    """Returns an exported file's factory, combined with AdamW as the file's docstring shows."""

    def make(learning_rate=LR, total_steps=STEPS, labels=ne.labels, **args):
        policy = module_of(spec).optimizer(learning_rate, total_steps, **args)
        transforms = {"matrix": policy, "other": optax.adamw(learning_rate)}
        return optax.partition(transforms, labels)

    return make


def library(spec):
    """Returns the library's factory for a spec."""

    def make(learning_rate=LR, total_steps=STEPS, **args):
        return ne.optimizer(spec, learning_rate=learning_rate, total_steps=total_steps, **args)

    return make


def adamw(learning_rate=LR, total_steps=STEPS):
    """Returns the reference optimizer."""
    del total_steps
    return optax.with_extra_args_support(optax.adamw(learning_rate))


# One iteration of Polar Express keeps compilation short.
BASELINE, SENSING = (spec._replace(ns_steps=1) for spec in (NANOCHAT, EVERYTHING))
FACTORIES = {
    "adamw": adamw,
    "baseline": library(BASELINE),
    "annealing": library(ANNEALING),
    "sensing": library(SENSING),
    "baseline exported": exported(BASELINE),
    "annealing exported": exported(ANNEALING),
    "sensing exported": exported(SENSING),
}


def over(names, fast=tuple(FACTORIES)):
    """Parametrises a test over factories; those that are not in `fast` are marked as slow."""
    params = [
        pytest.param(FACTORIES[name], id=name, marks=() if name in fast else pytest.mark.slow)
        for name in names
    ]
    return pytest.mark.parametrize("make", params)


POLICIES = [name for name in FACTORIES if name != "adamw"]
COMPILED = ("adamw", "sensing", "sensing exported")
every_factory, every_compiled_factory = over(FACTORIES), over(FACTORIES, COMPILED)
every_policy, every_compiled_policy = over(POLICIES), over(POLICIES, COMPILED)
every_sensing_policy = over(["sensing", "sensing exported"])


INJECTABLE = {
    "adamw": lambda: optax.inject_hyperparams(optax.adamw)(LR),
    "optimizer": lambda: optax.inject_hyperparams(ne.optimizer)(
        SENSING, total_steps=STEPS, learning_rate=LR
    ),
    "candidate_optimizer": lambda: optax.inject_hyperparams(ne.candidate_optimizer)(
        SENSING, LR, total_steps=STEPS, others=ne.AdamWGroup(LR, 0.9, 0.99, 0.0)
    ),
    "evolved_muon": lambda: optax.inject_hyperparams(ne.evolved_muon)(
        BASELINE, LR, total_steps=STEPS
    ),
    "exported": lambda: optax.inject_hyperparams(module_of(SENSING).optimizer)(LR, STEPS),
}


def tree(seed=0, dtype=jnp.float32):
    """Returns two matrices of one shape, one matrix of another, an embedding and a bias."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {
        "embed": draw(10, 4),
        "layers": [{"kernel": draw(4, 6), "bias": draw(6)}, {"kernel": draw(4, 6)}],
        "down": {"kernel": draw(6, 4)},
    }


class Loop(NamedTuple):
    """One compiled step of a factory's optimizer, shared by the checks that suit it."""

    tx: optax.GradientTransformationExtraArgs
    step: object


@functools.cache
def loop_of(make):
    tx = make()

    @jax.jit
    def step(grads, state, params, value):
        return tx.update(grads, state, params, value=value)

    return Loop(tx, step)


def assert_same(a, b, atol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=atol, atol=atol), a, b)


def described(state):
    return jax.tree.map(lambda x: (jnp.shape(x), x.dtype, x.weak_type), state)


def is_finite(state):
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state))


def assert_unshared(tree):
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]
    assert len(set(pointers)) == len(pointers)


# State.


@every_factory
def test_no_two_leaves_of_a_fresh_state_share_a_buffer(make):
    params, tx = tree(), make()
    for init in (tx.init, jax.jit(tx.init)):
        assert_unshared((params, init(params)))


def test_a_state_may_be_made_of_shapes_alone():
    shapes = jax.eval_shape(tree)
    layouts = [functools.partial(FACTORIES["sensing"], layout=name) for name in LAYOUTS]
    for make in (*FACTORIES.values(), *layouts):
        tx = make()
        assert described(tx.init(shapes)) == described(jax.eval_shape(tx.init, tree()))


@every_compiled_factory
def test_a_step_may_own_its_arguments(make):
    tx, params = make(), tree()

    def step(grads, state, params, value):
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    donated = jax.jit(step, donate_argnums=(1, 2))
    for seed in range(2):
        params, state = donated(tree(seed), state, params, jnp.float32(2.0))
    assert is_finite(params)


@every_compiled_factory
def test_the_state_is_arrays_alone_and_survives_a_checkpoint(make):
    tx, step = loop_of(make)
    params = tree()
    _, state = step(tree(1), tx.init(params), params, 2.0)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    saved = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(tx.init(params), saved)
    assert_same(step(tree(2), restored, params, 1.5), step(tree(2), state, params, 1.5))


DTYPES = ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize("params_dtype", DTYPES)
@pytest.mark.parametrize("grads_dtype", DTYPES)
@every_factory
def test_the_state_keeps_its_dtypes_and_updates_have_those_of_adamw(
    make, params_dtype, grads_dtype
):
    params, grads = tree(0, params_dtype), tree(1, grads_dtype)
    update = functools.partial(jax.eval_shape, value=jnp.float32(2.0))
    tx, reference = make(), adamw()
    state = jax.eval_shape(tx.init, params)
    updates, following = update(tx.update, grads, state, params)
    expected, _ = update(reference.update, grads, reference.init(params), params)
    assert described(updates) == described(expected)
    if (
        "exported" in make.__qualname__ or make is adamw
    ):  # the first moments of optax.adamw may be promoted
        state, following = (optax.tree.get(x, "inner_states", {}) for x in (state, following))
        state, following = state.get("matrix"), following.get("matrix")
    assert described(following) == described(state)


@every_policy
def test_matrices_of_one_shape_may_have_several_dtypes(make):
    params = {f"emb{i}": jnp.ones((4, 6), dtype) for i, dtype in enumerate(DTYPES)}
    params |= {f"w{i}": jnp.ones((4, 6), dtype) for i, dtype in enumerate(DTYPES)}
    tx = make()
    state = jax.eval_shape(tx.init, params)
    for dtype in (None, "float32"):
        grads = jax.tree.map(lambda x, d=dtype: x.astype(d or x.dtype), params)
        arguments = (grads, state, params)
        updates, following = jax.eval_shape(tx.update, *arguments, value=jnp.float32(1.0))
        matrix = lambda tree: tree.inner_states["matrix"]  # noqa: E731
        assert described(matrix(following)) == described(matrix(state))
        assert described(updates) == described(grads)


@every_factory
def test_the_state_is_a_scan_carry(make):
    tx = make()

    def body(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params, value=jnp.float32(2.0))
        return (optax.apply_updates(params, updates), state), None

    def run(params):
        grads = jax.tree.map(lambda x: jnp.ones((3, *x.shape), jnp.bfloat16), params)
        return jax.lax.scan(body, (params, tx.init(params)), grads)

    jax.eval_shape(run, tree())


@every_factory
def test_x64_changes_no_dtype_of_the_state(make):
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            params = tree(0, dtype)
            tx = make(learning_rate=optax.linear_schedule(0.1, 0.0, 9))
            state = jax.eval_shape(tx.init, params)
            arguments = (params, state, params)
            updates, following = jax.eval_shape(tx.update, *arguments, value=jnp.float64(2.0))
            assert described(following) == described(state)
            assert described(updates) == described(params)


@every_policy
def test_numbers_of_numpy_change_no_dtype_of_the_state(make):
    with jax.enable_x64(True):
        tx = make(np.float64(0.1), np.int64(10), momentum=np.float64(0.9),
                  weight_decay=np.float64(0.1))  # fmt: skip
        state = jax.eval_shape(tx.init, tree())
        _, following = jax.eval_shape(tx.update, tree(), state, tree(), value=np.float64(2.0))
        assert described(following) == described(state)


@every_factory
def test_an_ensemble_maps_over_its_members(make):
    tx = make()
    params = jax.tree.map(lambda *xs: jnp.stack(xs), tree(0), tree(1))

    def both(params):
        state = jax.vmap(tx.init)(params)
        update = lambda g, s, p: tx.update(g, s, p, value=jnp.float32(2.0))  # noqa: E731
        return jax.vmap(update)(params, state, params)[0]

    assert described(jax.eval_shape(both, params)) == described(params)


@every_compiled_policy
def test_telemetry_is_read_from_the_state(make):
    tx, step = loop_of(make)
    _, state = step(tree(1), tx.init(tree()), tree(), 2.0)
    assert any(optax.tree.get_all_with_path(state, name) for name in ("mu", "momentum"))
    gates = optax.tree.get_all_with_path(state, "gate")  # The baseline exports no gate.
    assert all(0.0 <= float(gate) <= 1.0 for _, gate in gates)


# Compilation and devices.


@over(FACTORIES, ("adamw", "sensing"))
def test_a_compiled_step_equals_one_that_is_not_compiled(make):
    tx, step = loop_of(make)
    params = tree()
    state = tx.init(params)
    with jax.debug_nans(True):  # every intermediate operation must be finite
        plain = tx.update(tree(1), state, params, value=2.0)
    assert_unshared((params, plain))
    assert_same(step(tree(1), state, params, 2.0), plain, atol=1e-5)


def sharded(make, kind):
    """Returns two steps on two devices with every array sharded along an axis of the mesh."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    axes = {(10, 4): ("x", None), (4, 6): ("x", None), (6, 4): (None, "x"), (6,): ("x",)}

    def place(tree):
        put = lambda x: NamedSharding(mesh, PartitionSpec(*axes[x.shape]))  # noqa: E731
        return jax.tree.map(lambda x: jax.device_put(x, put(x)), tree)

    with jax.set_mesh(mesh):
        tx = make()
        params = place(tree())
        state = tx.init(params)
        step = jax.jit(lambda g, s, p: tx.update(g, s, p, value=jnp.float32(2.0)))
        for seed in (1, 2):
            updates, following = step(place(tree(seed)), state, params)
            assert described(following) == described(state)
            state = following
        spec = updates["layers"][0]["kernel"].sharding.spec
        return jax.device_get(updates), spec


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@every_compiled_factory
def test_sharded_parameters_get_the_same_updates(make, kind):
    tx, step = loop_of(make)
    state = tx.init(tree())
    for seed in (1, 2):
        expected, state = step(tree(seed), state, tree(), 2.0)
    found, spec = sharded(make, kind)
    assert_same(found, expected, atol=1e-4)
    if kind == AxisType.Explicit:
        assert spec == PartitionSpec("x", None)


@pytest.mark.parametrize("name", ["adamw", "optimizer", "evolved_muon", "exported"])
def test_injected_hyperparameters_are_traced_under_an_explicit_mesh(name):
    tx = INJECTABLE[name]()
    with jax.set_mesh(jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))):
        ones = jax.device_put(jnp.ones((4, 6)), PartitionSpec("x", None))
        params = {"layer": ones, "head": ones}
        value = {} if name == "adamw" else {"value": jnp.float32(2.0)}
        step = lambda g, s, p: tx.update(g, s, p, **value)  # noqa: E731
        updates, _ = jax.eval_shape(step, params, tx.init(params), params)
        assert updates["layer"].sharding.spec == PartitionSpec("x", None)


# Wrappers from optax.


@every_compiled_factory
def test_gradients_may_be_accumulated(make):
    tx, step = loop_of(make)
    params, multi = tree(), optax.MultiSteps(make(), 2)
    update = jax.jit(multi.update)
    nothing, state = update(tree(1), multi.init(params), params, value=2.0)
    found, _ = update(tree(2), state, params, value=2.0)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, tree(1), tree(2))
    expected, _ = step(mean, tx.init(params), params, 2.0)
    assert not any(jnp.any(x) for x in jax.tree.leaves(nothing))
    assert_same(found, expected, atol=1e-4)


@pytest.mark.parametrize("make", INJECTABLE.values(), ids=INJECTABLE.keys())
def test_hyperparameters_may_be_injected(make):
    params, tx = {"layer": jnp.ones((4, 6)), "head": jnp.ones((6, 3))}, make()
    state = tx.init(params)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(LR)
    update = jax.jit(lambda g, s: tx.update(g, s, params, value=2.0))
    updates, following = update(params, state)
    assert jnp.any(updates["layer"] != 0)
    assert described(following) == described(state)
    following.hyperparams["learning_rate"] = jnp.float32(0.0)
    updates, _ = update(params, following)
    assert not jnp.any(updates["layer"])


@every_compiled_factory
def test_gradients_that_are_not_finite_may_be_skipped(make):
    params = tree()
    tx = optax.apply_if_finite(make(), 5)
    update, state = jax.jit(tx.update), tx.init(params)
    bad = jax.tree.map(lambda x: x * jnp.nan, params)
    updates, after = update(bad, state, params, value=jnp.float32(jnp.nan))
    assert not any(jnp.any(x) for x in jax.tree.leaves(updates))
    assert_same(after.inner_state, state.inner_state)
    updates, after = update(tree(1), after, params, value=jnp.float32(2.0))
    assert is_finite(after) and jnp.any(updates["embed"])


@every_compiled_factory
def test_masked_leaves_are_left_alone(make):
    params = tree()
    mask = {"embed": True, "layers": [{"kernel": False, "bias": True}, {"kernel": True}],
            "down": {"kernel": True}}  # fmt: skip
    tx = optax.masked(make(), mask)
    updates, _ = jax.jit(tx.update)(tree(1), tx.init(params), params, value=2.0)
    np.testing.assert_array_equal(updates["layers"][0]["kernel"], tree(1)["layers"][0]["kernel"])
    assert jnp.any(updates["layers"][1]["kernel"] != tree(1)["layers"][1]["kernel"])


# Trees without matrices.


@every_factory
@pytest.mark.parametrize(
    "params",
    [{}, [], {"a": {}, "b": None}, {"bias": jnp.ones(3), "scale": jnp.ones(())},
     {"kernel": jnp.ones((0, 5))}, {"kernel": jnp.ones((5, 0)), "b": jnp.ones(2)}],
    ids=["empty", "list", "nested", "no matrix", "no input", "no output"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:ne.optimizer")
def test_trees_without_matrices_are_no_error(make, params):
    tx = make()
    state = tx.init(params)
    updates, following = jax.jit(tx.update)(params, state, params, value=2.0)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert described(following) == described(state)


@every_compiled_policy
def test_a_matrix_without_entries_is_left_alone_beside_others(make):
    params = tree() | {"none": jnp.ones((0, 6)), "wide": jnp.ones((4, 0))}
    tx = make()
    updates, state = jax.jit(tx.update)(params, tx.init(params), params, value=2.0)
    assert is_finite(state) and jnp.all(updates["down"]["kernel"] != 0)
    assert updates["none"].shape == (0, 6) and updates["wide"].shape == (4, 0)


@every_policy
def test_a_label_that_nothing_has_is_no_error(make):
    params = {"a": jnp.ones((4, 6)), "b": jnp.ones(3)}
    tx = optax.partition(
        {"used": optax.sgd(0.1), "unused": make()}, jax.tree.map(lambda _: "used", params)
    )
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-6)


@every_policy
def test_a_vector_among_the_matrices_is_named(make):
    tx = make(labels=lambda params: jax.tree.map(lambda _: "matrix", params))
    with pytest.raises(ValueError, match=r"params\['b'\] must be a matrix .* got shape \(3,\)"):
        tx.init({"a": jnp.ones((4, 6)), "b": jnp.ones(3)})


# Losses.


BAD = [jnp.nan, jnp.inf, -jnp.inf]


@every_sensing_policy
@pytest.mark.parametrize("losses", [[2.0, *BAD, 1.5], [*BAD, 2.0, 1.5]], ids=["later", "first"])
def test_a_loss_that_is_not_finite_is_not_sensed(make, losses):
    tx, step = loop_of(make)
    state = tx.init(tree())
    for seed, loss in enumerate(losses):
        updates, state = step(tree(seed), state, tree(), loss)
        assert is_finite(updates) and is_finite(state)
        if not np.isfinite(loss):
            assert 0.0 <= float(optax.tree.get(state, "gate")) <= 1.0
    first = optax.tree.get(state, "first_log_loss")
    assert float(first) == pytest.approx(np.log(2.0))


@every_sensing_policy
def test_a_gradient_that_is_not_finite_leaves_no_trace_in_the_senses(make):
    """The momentum keeps the bad values, as AdamW's moments do, but the sensors recover."""
    tx, step = loop_of(make)
    state = tx.init(tree())
    bad = jax.tree.map(lambda x: x * jnp.nan, tree())
    for grads in (tree(1), bad, tree(2)):
        _, state = step(grads, state, tree(), 2.0)
    assert is_finite(optax.tree.get(state, "averages"))
    assert is_finite(optax.tree.get(state, "previous_sample"))
    assert jnp.isfinite(optax.tree.get(state, "gate"))


def test_the_library_and_its_exported_file_treat_bad_steps_alike():
    runs = []
    for name, momentum in (("sensing", "momentum"), ("sensing exported", "mu")):
        tx, step = loop_of(FACTORIES[name])
        state = tx.init(tree())
        gates = []
        for seed, loss in enumerate([jnp.nan, 3.0, jnp.inf, 2.0, jnp.nan, jnp.nan, 1.5]):
            grads = tree(seed)
            if seed == 3:
                grads = jax.tree.map(lambda x: x * jnp.inf, grads)
                kept = state
            _, state = step(grads, state, tree(), loss)
            gates.append(float(optax.tree.get(state, "gate")))
            if seed == 3:  # a loop that skips such updates would also keep the old momentum
                matrix = kept.inner_states["matrix"]
                matrix = optax.tree.set(
                    state.inner_states["matrix"], **{momentum: optax.tree.get(matrix, momentum)}
                )
                state = state._replace(inner_states=state.inner_states | {"matrix": matrix})
        runs.append(gates)
    np.testing.assert_allclose(*runs, atol=1e-4)
    assert np.isfinite(runs[0]).all()


@every_policy
@pytest.mark.parametrize("loss", [jnp.ones(1), jnp.ones((1, 1)), np.float64(1.0), 1, np.ones(1)])
def test_a_loss_of_one_element_is_a_scalar(make, loss):
    tx = make()
    state = jax.eval_shape(tx.init, tree())
    jax.eval_shape(lambda s: tx.update(tree(), s, tree(), value=loss), state)


@every_policy
@pytest.mark.parametrize("shape", [(2,), (0,), (3, 1)])
def test_a_loss_of_another_shape_is_a_clear_error(make, shape):
    if make in (FACTORIES["baseline exported"], FACTORIES["annealing exported"]):
        pytest.skip("the file does not read the loss")
    tx = make()
    with pytest.raises(ValueError, match=r"value must be the loss, a scalar, got shape \("):
        tx.update(tree(), tx.init(tree()), tree(), value=jnp.ones(shape))


# Settings and parameters.


@every_policy
@pytest.mark.parametrize(
    "steps", [0, -5, 0.5, 10.5, True, float("nan"), float("inf"), "10", None, np.int64(0),
              jnp.int32(-1), (10,)]
)  # fmt: skip
def test_a_horizon_that_is_no_number_of_steps_is_a_clear_error(make, steps):
    with pytest.raises(ValueError, match="total_steps must be a whole number of at least 1, got"):
        make(total_steps=steps)


@every_policy
@pytest.mark.parametrize("steps", [1, 10.0, np.int32(10), jnp.int32(10)])
def test_a_horizon_may_be_any_whole_number(make, steps):
    make(total_steps=steps)


@pytest.mark.parametrize("make", [FACTORIES["adamw"], FACTORIES["baseline"]])
def test_numbers_among_the_parameters_are_treated_as_adamw_treats_them(make):
    params = {"head": jnp.ones((4, 6)), "scale": 2.0, "steps": jnp.int32(3)}
    grads = {"head": jnp.ones((4, 6)), "scale": 1.0, "steps": jnp.float32(0.0)}
    group = ne.AdamWGroup(LR, 0.9, 0.999, 1e-4)
    tx = make() if make is adamw else make(others=group)
    updates, _ = tx.update(grads, tx.init(params), params, value=2.0)
    assert float(updates["scale"]) == pytest.approx(-LR, rel=1e-2)


@pytest.mark.parametrize(
    ("leaf", "shown"), [(jnp.tanh, "got "), ("relu", "got str"), (jax.random.key(0), "key<fry>")]
)
def test_a_leaf_that_is_no_array_is_named(leaf, shown):
    tx = ne.optimizer("nanochat", total_steps=STEPS, learning_rate=LR)
    with pytest.raises(TypeError, match=rf"params\['act'\] must be a numeric array, .*{shown}"):
        tx.init({"layer": jnp.ones((4, 6)), "act": leaf})


def test_an_equinox_model_that_is_not_filtered_is_a_clear_error():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 2, 8, 2, key=jax.random.key(0))
    tx = ne.optimizer("nanochat", total_steps=STEPS, learning_rate=LR)
    with pytest.raises(TypeError, match=r"params.activation.* must be a numeric array.*eqx.filter"):
        tx.init(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = tx.init(params)
    jax.eval_shape(lambda: tx.update(params, state, model))  # optax.adamw allows this too
    with pytest.raises(ValueError, match=r"gradient of params.layers\[0\].weight .* got None"):
        tx.update(eqx.tree_at(lambda m: m.layers[0].weight, params, None), state, params)
