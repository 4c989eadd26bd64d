"""The library's one call, on the parameters of Flax, Haiku, Equinox and plain trees."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from specs import EVERYTHING

import nanoevolve_jax as ne
from nanoevolve_jax.exports.origin import Origin, to_document
from nanoevolve_jax.policy.labels import default_labels

ANNEALING = ne.PRESETS["annealing"]
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(64, 8)), jnp.float32)
Y = jnp.sin(X @ jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32))


def labels_by_path(params, **args):
    labels = default_labels(params, **args)
    return {
        jax.tree_util.keystr(path): label
        for path, label in jax.tree_util.tree_leaves_with_path(labels)
    }


def assert_it_trains(apply, params, **args):
    """Sixty steps of regression bring the loss down; every array moves, and None stays None."""
    tx = ne.optimizer(ANNEALING, total_steps=60, learning_rate=0.03, **args)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((apply(p, X) - Y) ** 2))(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    losses, before = [], params
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, params)
    assert all(jax.tree.leaves(moved))
    assert 0.0 < float(optax.tree.get(state, "gate")) < 1.0


def test_a_flax_nnx_state():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 32, rngs=rngs)
            self.second = nnx.Linear(32, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.tanh(self.first(x)))

    graph, params = nnx.split(Net(nnx.Rngs(0)))
    labels = labels_by_path(params)
    assert sorted(labels.values()) == ["matrix", "matrix", "other", "other"]
    assert_it_trains(lambda p, x: nnx.merge(graph, p)(x), params)


def test_a_flax_linen_dictionary():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(linen.tanh(linen.Dense(32)(x)))

    params = Net().init(jax.random.key(0), X)
    assert labels_by_path(params)["['params']['Dense_0']['kernel']"] == "matrix"
    assert_it_trains(Net().apply, params)


def test_a_haiku_dictionary():
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(
        hk.transform(lambda x: hk.Linear(3)(jnp.tanh(hk.Linear(32, name="multi_head_query")(x))))
    )
    params = net.init(jax.random.key(0), X)
    assert labels_by_path(params)["['multi_head_query']['w']"] == "matrix"
    assert_it_trains(net.apply, params)


def test_an_equinox_module_with_none_where_it_has_no_array():
    eqx = pytest.importorskip("equinox")
    first, second = jax.random.split(jax.random.key(0))
    net = eqx.nn.Sequential(
        [
            eqx.nn.Linear(8, 32, key=first),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Linear(32, 3, use_bias=False, key=second),
        ]
    )
    params, static = eqx.partition(net, eqx.is_inexact_array)
    assert sorted(labels_by_path(params).values()) == ["matrix", "matrix", "other"]
    apply = lambda p, x: jax.vmap(eqx.combine(p, static))(x)  # noqa: E731
    assert_it_trains(apply, params, layout="outputs_inputs")


# Layout: the mathematics is not symmetric, so a transposed model needs a transposed optimizer.


def updates_of(params, grads, steps=3, **args):
    tx = ne.optimizer(EVERYTHING, total_steps=10, learning_rate=0.1, weight_decay=0.1, **args)
    state, found = tx.init(params), []
    for count in range(steps):
        scaled = optax.tree.scale(1.0 + count, grads)
        updates, state = tx.update(scaled, state, params, value=2.0)
        found.append(updates)
    return found, state


@pytest.mark.parametrize("shapes", [[(6, 4)], [(6, 4), (6, 4), (5, 5), (3, 7)]])
def test_the_other_layout_is_the_same_optimizer_on_transposed_matrices(shapes):
    rng = np.random.default_rng(1)
    params, grads = ([jnp.float32(rng.normal(size=s)) for s in shapes] for _ in range(2))
    if len(shapes) == 1:
        params, grads = params[0], grads[0]
    turn = lambda tree: jax.tree.map(jnp.transpose, tree)  # noqa: E731
    plain, _ = updates_of(params, grads)
    turned, state = updates_of(turn(params), turn(grads), layout="outputs_inputs")
    wrong, _ = updates_of(turn(params), turn(grads))
    for a, b in zip(plain, turned, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y.T, atol=1e-6), a, b)
    difference = jnp.abs(jax.tree.leaves(plain[0])[0] - jax.tree.leaves(wrong[0])[0].T)
    assert jnp.max(difference) > 1e-3
    momentum = optax.tree.get(state, "momentum")  # kept in the layout of the parameters
    assert [x.shape for x in jax.tree.leaves(momentum)] == [s[::-1] for s in shapes]


def test_map_params_works_in_the_other_layout():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones(4)}
    tx = ne.optimizer("annealing", total_steps=9, learning_rate=0.1, layout="outputs_inputs")
    marked = optax.tree.map_params(
        tx, lambda x: "param", tx.init(params), transform_non_params=lambda x: "other"
    )
    assert jax.tree.leaves(optax.tree.get(marked, "momentum")) == ["param"]
    assert optax.tree.get(marked, "gate") == "other"


def test_a_layout_that_is_none_is_a_clear_error():
    with pytest.raises(ValueError, match="layout is 'oi'; allowed: inputs_outputs or outputs_inp"):
        ne.optimizer("nanochat", total_steps=9, learning_rate=0.1, layout="oi")


# Labels.


@pytest.mark.parametrize(
    ("name", "shape", "label"),
    [
        ("dense_kernel", (4, 6), "matrix"),
        ("bias", (6,), "other"),
        ("scale", (), "other"),
        ("conv_kernel", (3, 3, 4, 6), "other"),
        ("attention_kernel", (4, 2, 3), "other"),
        ("token_embedding", (10, 4), "other"),
        ("wte", (10, 4), "other"),
        ("lm_head", (4, 10), "other"),
        ("Head_0", (4, 10), "other"),
        ("logits", (4, 10), "other"),
        ("multi_head_attention", (4, 6), "matrix"),
        ("MultiHeadDotProductAttention_0", (4, 6), "matrix"),
        ("header_proj", (4, 6), "matrix"),
    ],
)
def test_matrices_are_told_by_shape_and_name(name, shape, label):
    (found,) = labels_by_path({name: {"w": jnp.ones(shape)}}).values()
    assert found == label


def test_stacks_of_matrices_can_be_asked_for():
    params = {"blocks": {"kernel": jnp.ones((3, 4, 6)), "bias": jnp.ones((3, 6))},
              "embed": {"blocks": jnp.ones((3, 4, 6))},
              "conv": jnp.ones((3, 4, 6))}  # fmt: skip
    labels = default_labels(params, stacked=["blocks"])
    assert labels["blocks"]["kernel"] == "matrix"
    assert labels["embed"]["blocks"] == labels["conv"] == "other"


def test_a_stack_is_updated_like_its_matrices():
    rng = np.random.default_rng(2)
    stack, grads = (jnp.float32(rng.normal(size=(3, 4, 6))) for _ in range(2))
    for layout in ("inputs_outputs", "outputs_inputs"):
        together, _ = updates_of({"blocks": stack}, {"blocks": grads}, steps=1, layout=layout,
                                 stacked=["blocks"])  # fmt: skip
        apart, _ = updates_of(list(stack), list(grads), steps=1, layout=layout)
        found = together[0]["blocks"]
        # The alignment's sample is of other entries, which the first step does not read.
        np.testing.assert_allclose(found, jnp.stack(apart[0]), atol=1e-6)


def test_labels_and_groups_can_be_chosen():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4)), "c": jnp.ones(4)}
    still = ne.AdamWGroup(learning_rate=0.0, b1=0.9, b2=0.95, weight_decay=0.0)
    moving = still._replace(learning_rate=0.1)
    chosen = {"a": "matrix", "b": "frozen", "c": "other"}
    for labels in (chosen, lambda params: chosen):
        tx = ne.optimizer(
            "nanochat",
            total_steps=9,
            learning_rate=0.1,
            others={"frozen": still, "other": moving},
            labels=labels,
        )
        updates, _ = tx.update(params, tx.init(params), params)
        moved = {name: bool(jnp.any(u != 0)) for name, u in updates.items()}
        assert moved == {"a": True, "b": False, "c": True}


# Policies by name, by file, by hand.


def test_a_policy_is_a_spec_a_preset_a_record_or_an_export(tmp_path):
    files = {
        "spec.json": ne.spec_to_json(ANNEALING),
        "record.json": {"id": "g1", "spec": ne.spec_to_json(ANNEALING)},
        "export.json": to_document(ANNEALING, Origin("g1", "annealing")),
    }
    params = grads = {"a": jnp.ones((3, 4))}
    found = []
    for name, document in files.items():
        (tmp_path / name).write_text(json.dumps(document))
    paths = [tmp_path / name for name in files] + [str(tmp_path / "spec.json")]
    for policy in (ANNEALING, "annealing", *paths):
        tx = ne.optimizer(policy, total_steps=9, learning_rate=0.1)
        updates, _ = tx.update(grads, tx.init(params), params, value=1.0)
        found.append(np.asarray(updates["a"]))
    assert all(np.array_equal(found[0], other) for other in found)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("anealing", "policy is 'anealing'; allowed: a JSON file, or one of nanochat"),
        (7, "policy is 7; allowed: a spec"),
    ],
)
def test_a_policy_that_is_none_is_a_clear_error(policy, message):
    with pytest.raises(ne.SpecError, match=message):
        ne.optimizer(policy, total_steps=9, learning_rate=0.1)


def test_a_learning_rate_and_a_horizon_are_always_asked_for():
    with pytest.raises(TypeError, match="learning_rate"):
        ne.optimizer("nanochat", total_steps=9)
    with pytest.raises(TypeError, match="total_steps"):
        ne.optimizer("nanochat", learning_rate=0.1)
