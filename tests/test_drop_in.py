"""The library's single call on the parameters of Flax, Haiku, Equinox and plain trees."""

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
    """Trains for sixty steps and requires that the loss falls, arrays change, and None stays."""
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


# Layout. The mathematics is not symmetric, so a transposed model needs a transposed optimizer.


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
    momentum = optax.tree.get(state, "momentum")  # stored in the layout of the parameters
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
    with pytest.raises(ValueError, match="layout must be inputs_outputs or"):
        ne.optimizer("nanochat", total_steps=9, learning_rate=0.1, layout="oi")


# Labels.


def label_of(name, shape=(4, 6), **args):
    """Returns the label of an array `w` at a dotted path."""
    tree = {"w": jnp.ones(shape)}
    for part in reversed(name.split(".")):
        tree = {part: tree}
    (label,) = labels_by_path(tree, **args).values()
    return label


@pytest.mark.parametrize(
    ("name", "shape", "label"),
    [
        ("dense_kernel", (4, 6), "matrix"),
        ("conv_kernel", (3, 3, 4, 6), "other"),
        ("attention_kernel", (4, 2, 3), "other"),
        ("vector", (6,), "other"),
        ("scalar", (), "other"),
    ],
)
def test_arrays_of_two_axes_are_matrices(name, shape, label):
    assert label_of(name, shape) == label


EMBEDDINGS = """emb tok_emb pos_emb wte wpe embed embeddings Embed_0 token_embedding tokenembedding
embed_tokens word_embeddings tok_embd tokEmb posEmb1D patch_embed.proj pos position_table cls_token
positional_encoding codebook soft_prompt"""
OUTPUTS = """head Head_0 heads heads.cls lm_head LMHead lmHead lm_head_weight head_dense cls_head
value_head key_encoder.head attention_model.lm_head classifier readout unembed unembed_proj logits
to_logits logits_proj vocab_proj model.embed_out"""
OUTERMOST = """input output output_layer params.output input_proj output_projection proj_out fc_out
out out.kernel final_layer final_dense"""
HIDDEN = """attn.heads attention.heads.0 attn.head_0.query multi_head_attention multihead_attn
MultiHeadDotProductAttention_0 query_heads kv_heads n_head head_dim head_proj header_proj ahead
embed_proj embedding_projection member pos_ffn positionwise_ffn token_mixer tokenizer attn.out_proj
attention.output.dense blocks.0.output decoder shared overhead mlp.fc1 W_q
sa.heads.0.key prompt_mlp without layout_proj"""


@pytest.mark.parametrize("name", (EMBEDDINGS + " " + OUTPUTS).split())
def test_the_words_of_a_path_tell_embeddings_and_output_layers(name):
    assert label_of(name) == label_of(f"blocks.0.{name}") == "other"


@pytest.mark.parametrize("name", OUTERMOST.split())
def test_the_outermost_layers_of_a_model_are_told_by_words_that_layers_within_may_have(name):
    assert label_of(name) == "other"
    assert label_of(f"blocks.0.{name}") == "matrix"


@pytest.mark.parametrize("name", HIDDEN.split())
def test_hidden_layers_with_words_like_those_of_embeddings_are_matrices(name):
    assert label_of(name) == label_of(f"blocks.0.{name}") == "matrix"


def test_biases_scales_and_whole_numbers_are_never_matrices():
    two_axes = jnp.ones((3, 4))
    params = {
        "query": {"bias": two_axes, "kernel": two_axes},
        "layer_norm": {"scale": two_axes, "offset": two_axes, "w": two_axes},
        "ln_1": {"w": two_axes},
        "steps": jnp.ones((3, 4), jnp.int32),
    }
    found = labels_by_path(params)
    assert [name for name, label in found.items() if label == "matrix"] == ["['query']['kernel']"]


def test_an_equinox_embedding_is_told_by_its_class():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        words: eqx.nn.Embedding
        hidden: eqx.nn.Linear

    first, second = jax.random.split(jax.random.key(0))
    net = Net(eqx.nn.Embedding(9, 4, key=first), eqx.nn.Linear(4, 4, key=second))
    assert sorted(labels_by_path(net).values()) == ["matrix", "other", "other"]
    assert labels_by_path(net)[".hidden.weight"] == "matrix"


def test_stacks_of_matrices_can_be_asked_for():
    params = {"blocks": {"kernel": jnp.ones((3, 4, 6)), "bias": jnp.ones((3, 6)),
                         "attention": {"bias": jnp.ones((3, 2, 4))}},
              "embed": {"blocks": jnp.ones((3, 4, 6))},
              "conv": jnp.ones((3, 4, 6))}  # fmt: skip
    labels = default_labels(params, stacked=["blocks"])
    assert labels["blocks"]["kernel"] == "matrix"
    assert labels["blocks"]["bias"] == labels["blocks"]["attention"]["bias"] == "other"
    assert labels["embed"]["blocks"] == labels["conv"] == "other"


@pytest.mark.parametrize(
    ("name", "shape", "label"),
    [
        ("layers", (3, 6), "other"),  # one vector per layer
        ("layers.gain_of_unknown_name", (3, 6), "other"),
        ("layer_stack", (3, 4, 6), "matrix"),
        ("scanLayers_0", (3, 4, 6), "matrix"),
        ("players", (3, 4, 6), "other"),
        ("layers.experts", (3, 2, 6), "other"),  # one vector per layer and expert
        ("layers.experts", (3, 2, 4, 6), "matrix"),
    ],
)
def test_every_word_for_stacks_accounts_for_one_axis(name, shape, label):
    assert label_of(name, shape, stacked=["layers", "experts"]) == label


def test_vectors_of_stacked_layers_are_updated_by_adamw():
    rng = np.random.default_rng(0)
    stack = jnp.float32(rng.normal(size=(3, 6)))
    params = {"layers": {"kernel": jnp.ones((3, 4, 6)), "scale": stack, "shift": stack},
              "head": jnp.ones((6, 4))}  # fmt: skip
    tx = ne.optimizer("nanochat", total_steps=9, learning_rate=0.1, stacked=("layers",))
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    reference = optax.adamw(3e-4, b1=0.9, b2=0.95, eps=1e-10, weight_decay=0.0)
    expected, _ = reference.update(stack, reference.init(stack), stack)
    for name in ("scale", "shift"):
        np.testing.assert_allclose(updates["layers"][name], expected, rtol=1e-5)


def test_the_routing_can_be_shown(capsys):
    params = {"tok_emb": jnp.ones((9, 4)), "mlp": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}
    assert ne.labels(params) == {"tok_emb": "other", "mlp": {"kernel": "matrix", "bias": "other"}}
    ne.optimizer("nanochat", total_steps=9, learning_rate=0.1).init(params)
    assert capsys.readouterr().out == ""
    for labels in (None, ne.labels, ne.labels(params)):
        tx = ne.optimizer("nanochat", total_steps=9, learning_rate=0.1, labels=labels, report=print)
        tx.init(params)
        line = "matrix: 1 array, 24 parameters; other: 2 arrays, 42 parameters (tok_emb)\n"
        assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("params", "args", "message"),
    [
        ({"first": jnp.ones((4, 6)), "last": jnp.ones((6, 3))}, {}, "no array looks like an embed"),
        ({"head": jnp.ones((4, 6))}, {"stacked": ["blocks"]}, "stacked='blocks' occurs in the"),
        ({"head": jnp.ones((4, 6)), "w": jnp.ones((6, 6))}, {}, None),
        ({"bias": jnp.ones(4)}, {}, None),
        ({"first": jnp.ones((4, 6))}, {"labels": ne.labels}, None),
    ],
)
def test_a_doubtful_routing_warns_once_at_init(params, args, message, recwarn):
    tx = ne.optimizer("nanochat", total_steps=9, learning_rate=0.1, **args)
    state = tx.init(params)
    jax.eval_shape(tx.update, params, state, params)
    assert len(recwarn) == (message is not None)
    assert message is None or message in str(recwarn[0].message)


def test_a_stack_is_updated_like_its_matrices():
    rng = np.random.default_rng(2)
    stack, grads = (jnp.float32(rng.normal(size=(3, 4, 6))) for _ in range(2))
    for layout in ("inputs_outputs", "outputs_inputs"):
        together, _ = updates_of({"blocks": stack}, {"blocks": grads}, steps=1, layout=layout,
                                 stacked=["blocks"])  # fmt: skip
        apart, _ = updates_of(list(stack), list(grads), steps=1, layout=layout)
        found = together[0]["blocks"]
        # The alignment samples other entries, but the first step does not use the alignment.
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


# Policies given by name, by file or as a spec.


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
        ("anealing", "policy must be a JSON file or one of nanochat"),
        (7, "policy must be a spec"),
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
