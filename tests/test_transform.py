"""The candidate optimizer keeps the contract of an optax transform under every spec."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from specs import random_spec

from nanoevolve_jax.policy.labels import MATRIX, default_labels
from nanoevolve_jax.policy.muon import prescale
from nanoevolve_jax.policy.mutations import OPERATORS, ExhaustedError, mutate
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, PRESETS
from nanoevolve_jax.policy.transform import (
    AdamWGroup,
    candidate_optimizer,
    evolved_muon,
)

ADAMW = AdamWGroup(learning_rate=0.01, b1=0.9, b2=0.99, weight_decay=0.1)


def child_of(operator):
    """Returns a spec that this operator can produce."""
    rng = np.random.default_rng(0)
    for parent in [*PRESETS.values(), *(random_spec(rng) for _ in range(100))]:
        try:
            return mutate(parent, rng, set(), {operator: OPERATORS[operator]}).spec
        except ExhaustedError:
            continue
    raise AssertionError(operator)


REGISTRY = PRESETS | {name: child_of(name) for name in OPERATORS}
every_spec = pytest.mark.parametrize("spec", REGISTRY.values(), ids=REGISTRY.keys())


def make_params(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {
        "embed": {"table": draw(10, 6)},
        "layer": [{"kernel": draw(6, 12), "bias": draw(12)}, {"kernel": draw(12, 6)}],
        "head": {"kernel": draw(6, 10)},
        "scale": draw(),
    }


def make_optimizer(spec, **args):
    return candidate_optimizer(spec, 0.1, total_steps=10, others=ADAMW, weight_decay=0.1, **args)


@every_spec
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_update_keeps_structure_shapes_and_dtypes_and_compiles_once(spec, dtype):
    optimizer, params = make_optimizer(spec), make_params(dtype)
    traces = []

    @jax.jit
    def step(grads, state, params, value):
        traces.append(1)
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, updates

    state = first = optimizer.init(params)
    for seed in range(1, 4):
        params, state, updates = step(make_params(dtype, seed), state, params, jnp.float32(2.0))
    assert len(traces) == 1
    like = jax.tree.map(lambda x: (x.shape, x.dtype), make_params(dtype))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == like
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == like
    describe = functools.partial(jax.tree.map, lambda x: (jnp.shape(x), x.dtype))
    assert describe(state) == describe(first)
    assert all(jnp.isfinite(x.astype(jnp.float32)).all() for x in jax.tree.leaves(params))


@every_spec
def test_unknown_extra_arguments_are_tolerated(spec):
    optimizer, params = make_optimizer(spec), make_params()
    args = (make_params(seed=1), optimizer.init(params), params)
    plain, _ = optimizer.update(*args, value=1.0)
    extra, _ = optimizer.update(*args, value=1.0, nobody_knows=3, loss_fn=len)
    jax.tree.map(np.testing.assert_array_equal, plain, extra)


def test_map_params_reaches_every_parameter_shaped_leaf_and_nothing_else():
    optimizer, params = make_optimizer(ANNEALING), make_params()
    state = optimizer.init(params)
    marked = optax.tree.map_params(
        optimizer, lambda x: "param", state, transform_non_params=lambda x: "other"
    )
    inner = marked.inner_states[MATRIX].inner_state[0]
    leaf = inner.inner_state[1].momentum["layer"][0]["kernel"]
    assert leaf == "param"
    assert inner.count == inner.gate == inner.sensors.loss_ema == "other"
    assert inner.previous_sample["layer"][1]["kernel"] == "param"


def test_a_missing_loss_is_a_clear_error_only_where_the_gate_may_be_on():
    params = make_params()
    grads = make_params(seed=1)

    def update(spec, **args):
        optimizer = make_optimizer(spec)
        return optimizer.update(grads, optimizer.init(params), params, **args)

    update(NANOCHAT)  # the gate is known to be off
    with pytest.raises(ValueError, match="value must be the loss"):
        update(ANNEALING)
    with pytest.raises(ValueError, match="value must be the loss"):
        jax.jit(update)(jax.tree.map(jnp.asarray, NANOCHAT))  # the gate is traced, so it may be on
    with pytest.raises(ValueError, match="params must be the param"):
        optimizer = make_optimizer(NANOCHAT)
        optimizer.update(grads, optimizer.init(params), value=1.0)


def test_labels_send_matrices_to_the_policy_and_the_rest_to_adamw():
    labels = default_labels(make_params())
    assert labels["layer"] == [{"kernel": "matrix", "bias": "other"}, {"kernel": "matrix"}]
    assert labels["embed"]["table"] == labels["head"]["kernel"] == labels["scale"] == "other"


def one_update(spec, grads, state, params):
    optimizer = make_optimizer(spec)
    updates, state = optimizer.update(grads, state, params, value=2.0)
    return optax.apply_updates(params, updates), state


traced_update = jax.jit(one_update)


@every_spec
def test_traced_and_specialised_updates_agree(spec):
    specialised_update = jax.jit(functools.partial(one_update, spec))
    start = make_params()
    runs = [(start, make_optimizer(spec).init(start))] * 2
    for seed in range(1, 4):
        grads = make_params(seed=seed)
        runs = [
            traced_update(as_arrays(spec), grads, *runs[0][::-1]),
            specialised_update(grads, *runs[1][::-1]),
        ]
    (traced, _), (specialised, _) = runs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), traced, specialised)


SHAPES = [(6, 6), (6, 18), (18, 6)]
SCALES = [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30]


@functools.lru_cache
def compiled_steps():
    """Returns a program of two steps that takes any spec and any gradient scale."""

    @jax.jit
    def steps(spec, params, grads, losses):
        optimizer = evolved_muon(spec, 1.0, total_steps=10, weight_decay=0.1)
        state, out = optimizer.init(params), []
        for step in range(2):
            updates, state = optimizer.update(grads[step], state, params, value=losses[step])
            out.append(updates)
        return out

    return steps


def as_arrays(spec):
    return jax.tree.map(
        lambda like, x: np.asarray(x, np.int32 if isinstance(like, int) else np.float32),
        NANOCHAT,
        spec,
    )


def test_thousands_of_random_specs_give_finite_bounded_updates_at_any_gradient_scale():
    rng = np.random.default_rng(8)
    specs = [random_spec(rng) for _ in range(3000)]
    scales = rng.choice(SCALES, (2, len(specs)))
    losses = np.float32(rng.choice([1e-30, 0.5, 7.0, 1e30], (len(specs), 2)))

    def draw(scale):
        sizes = [(len(specs), *shape) for shape in SHAPES]
        return [np.float32(scale[:, None, None] * rng.normal(size=size)) for size in sizes]

    params = draw(np.ones(len(specs)))
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *map(as_arrays, specs))
    updates = jax.vmap(compiled_steps())(stacked, params, [draw(x) for x in scales], losses)
    # A direction has at most the norm of an orthogonal matrix, times the trust ratio and the
    # multipliers. Decay adds at most a tenth of the parameter. The shape factor scales both.
    control = stacked.control
    poles = np.maximum(control.aggressive.update_multiplier, control.conservative.update_multiplier)
    multiplier = stacked.update_multiplier * np.where(control.enabled, poles, 1.0)
    trust = np.where(stacked.trust_ratio, np.maximum(1.0, stacked.trust_ratio_max), 1.0)
    norm = lambda x: np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=(1, 2)))  # noqa: E731
    for step in updates:
        for u, p in zip(step, params, strict=True):
            factor = max(1.0, u.shape[2] / u.shape[1]) ** 0.5
            limit = multiplier * trust * min(u.shape[1:]) ** 0.5 * 1.01
            assert np.all(np.isfinite(norm(u)))
            assert np.all(norm(u) <= factor * (limit + 0.11 * norm(p)))


def test_the_prescale_for_huge_gradients_changes_no_ordinary_update():
    rng = np.random.default_rng(9)
    params = [np.float32(rng.normal(size=s)) for s in SHAPES]
    grads = [[np.float32(rng.normal(size=s)) for s in SHAPES] for _ in range(2)]
    ordinary = compiled_steps()(as_arrays(NANOCHAT), params, grads, np.float32([1, 1]))
    huge = [[g * np.float32(2.0**99) for g in step] for step in grads]
    scaled = compiled_steps()(as_arrays(NANOCHAT), params, huge, np.float32([1, 1]))
    for a, b in zip(jax.tree.leaves(ordinary), jax.tree.leaves(scaled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # 1e-6 is added only to the ordinary norm
    grad = grads[0][0]
    np.testing.assert_array_equal(prescale(grad * np.float32(1e14)), grad * np.float32(1e14))
    assert jnp.max(jnp.abs(prescale(grad * np.float32(1e30)))) < 2


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS.keys())
def test_it_trains_another_flax_model_as_a_drop_in(spec):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
    y = jnp.sin(x @ jnp.asarray(rng.normal(size=(8, 3)), jnp.float32))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 32, rngs=rngs)
            self.norm = nnx.LayerNorm(32, rngs=rngs)
            self.second = nnx.Linear(32, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(self.norm(nnx.tanh(self.first(x))))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model,
        candidate_optimizer(spec, 0.03, total_steps=60, others=ADAMW),
        wrt=nnx.Param,
    )

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, grads, value=loss)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_the_alignment_sample_costs_under_five_percent_of_the_momentum():
    params = {"a": jnp.zeros((64, 64)), "b": jnp.zeros((64, 256)), "c": jnp.zeros((4, 12))}
    state = evolved_muon(NANOCHAT, 0.1, total_steps=10).init(params)[0]
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    momentum = state.inner_state[1].momentum
    assert size(state.previous_sample) <= 0.05 * size(momentum)
    assert size(state) <= 1.25 * size(momentum)  # including the factored second moment
