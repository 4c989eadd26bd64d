"""The GPT: its dependencies, its initialisation, and figures that detect mistakes."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoevolve_jax.model import attention, gpt, loss, nanochat
from nanoevolve_jax.model.gpt import GPTConfig
from nanoevolve_jax.model.reference import Reference, drawn_params

FIGURES = pathlib.Path(__file__).parent / "reference"
apply = jax.jit(gpt.apply, static_argnums=0)
init = jax.jit(gpt.init_params, static_argnums=0)
GATE = 5e-6  # largest difference of logits from the reference
SMALL = GPTConfig(
    sequence_len=16, vocab_size=50, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, window_pattern="L"
)


def with_fields(config, **fields):
    return GPTConfig(**(vars(config) | fields))


def random_params(config):
    """Returns parameters without the neutral values that training starts from."""
    return nanochat.from_nanochat(drawn_params(config), config)


def tokens(config, batch=2, length=None, seed=0):
    shape = (batch, length or config.sequence_len)
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)


def seen(config, length, smear=0.5):
    """Returns bool[T, T]: whether the logits at t depend on the token at s, found by gradients."""
    params = random_params(config)
    table = 0.1 * jax.random.normal(jax.random.key(9), (length, config.n_embd))
    idx = jnp.arange(length)[None]  # every position reads a different row

    def logits(table):
        embedded = params | {"wte": {"embedding": table}, "smear_lambda": jnp.full(1, smear)}
        return gpt.apply(config, embedded, idx)[0].sum(axis=-1)  # [T]

    return np.abs(jax.jit(jax.jacrev(logits))(table)).sum(axis=-1) > 0


def test_logits_do_not_depend_on_later_tokens():
    config = with_fields(SMALL, vocab_size=64)
    np.testing.assert_array_equal(seen(config, 16), np.tri(16, dtype=bool))


@pytest.mark.parametrize(
    ("window", "kv_heads"), [(0, 1), (5, 2), (63, 1), (64, 1), (90, 2), (512, 1)]
)
def test_a_window_of_w_shows_w_tokens_back_and_the_query_itself(window, kv_heads):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (1, 150, heads, 4))
        for key, heads in zip(keys, (2, kv_heads, kv_heads), strict=True)
    )
    total = jax.jit(
        jax.jacrev(lambda v: attention.attend(q, k, v, window, "xla").sum(axis=(0, 2, 3)))
    )
    depends = np.abs(total(v)).sum(axis=(1, 3, 4)) > 0  # [T, S]
    distance = np.subtract.outer(np.arange(150), np.arange(150))
    np.testing.assert_array_equal(depends, (distance >= 0) & (distance <= window))


@pytest.mark.parametrize(("smear", "back"), [(0.0, 3), (0.5, 4)])
def test_a_one_layer_model_sees_its_window_and_through_smear_one_token_more(
    smear, back, monkeypatch
):
    monkeypatch.setattr(GPTConfig, "windows", property(lambda _: (3,)))
    config = with_fields(SMALL, n_layer=1, vocab_size=64, sequence_len=17 + back)
    distance = np.subtract.outer(np.arange(12), np.arange(12))
    visible = (distance >= 0) & (distance <= back)
    np.testing.assert_array_equal(seen(config, 12, smear), visible)


@pytest.mark.parametrize(("length", "window"), [(1, 3), (65, 3), (200, 70), (200, 512)])
def test_blockwise_attention_equals_the_masked_square_of_jax(length, window):
    keys = jax.random.split(jax.random.key(length), 3)
    q, k, v = (
        jax.random.normal(key, (2, length, heads, 8))
        for key, heads in zip(keys, (6, 2, 2), strict=True)
    )
    square = functools.partial(
        jax.nn.dot_product_attention, is_causal=True, local_window_size=(window, 0)
    )
    blocks = functools.partial(attention.attend, window=window, implementation="xla")
    np.testing.assert_allclose(jax.jit(blocks)(q, k, v), jax.jit(square)(q, k, v), atol=2e-6)


def test_weights_start_as_nanochat_starts_them():
    config = GPTConfig(64, 500, 3, 4, 2, 128, "L")
    params = init(config, jax.random.key(3))
    bound = (3 / 128) ** 0.5
    assert params["wte"]["embedding"].shape == (512, 128)
    np.testing.assert_allclose(np.std(params["wte"]["embedding"]), 0.8, rtol=0.02)
    np.testing.assert_allclose(np.std(params["lm_head"]["kernel"]), 0.001, rtol=0.02)

    def assert_uniform(array, low, high):
        array = np.asarray(array)
        assert array.min() >= low and array.max() <= high
        spread = high - low
        np.testing.assert_allclose(array.mean(), (low + high) / 2, atol=0.12 * spread)
        np.testing.assert_allclose(array.std(), spread / 12**0.5, rtol=0.25)

    for i, block in params["blocks"].items():
        attn, mlp = block["attn"], block["mlp"]
        for name in ("c_q", "c_k", "c_v"):
            assert_uniform(attn[name]["kernel"], -bound, bound)
        assert_uniform(mlp["c_fc"]["kernel"], -0.4 * bound, 0.4 * bound)
        assert not attn["c_proj"]["kernel"].any() and not mlp["c_proj"]["kernel"].any()
        assert ("value_embed" in attn) == (i % 2 == 0)
        if "value_embed" in attn:
            assert_uniform(attn["value_embed"]["embedding"], -bound, bound)
            assert_uniform(attn["ve_gate"]["kernel"], 0.0, 0.02)
            assert attn["ve_gate"]["kernel"].shape == (12, 2)
    assert_uniform(params["smear_gate"]["kernel"], 0.0, 0.02)
    np.testing.assert_allclose(params["resid_lambdas"], [1.15, 1.1, 1.05], rtol=1e-6)
    np.testing.assert_allclose(params["x0_lambdas"], [0.2, 0.125, 0.05], rtol=1e-6)
    assert params["smear_lambda"] == 0 and params["backout_lambda"] == np.float32(0.2)
    first = init(with_fields(config, n_layer=1), jax.random.key(0))
    assert first["resid_lambdas"] == np.float32(1.15) and first["x0_lambdas"] == np.float32(0.2)


def test_matrices_of_one_shape_start_different():
    leaves = [x for x in jax.tree.leaves(init(SMALL, jax.random.key(0))) if x.ndim == 2]
    drawn = [np.asarray(x).tobytes() for x in leaves if x.any()]
    assert len(set(drawn)) == len(drawn)


def drop(*path):
    """Returns a change that sets one parameter to 0."""

    def change(params):
        *parents, last = path
        node = params
        for key in parents:
            node = node[key]
        node[last] = jnp.zeros_like(node[last])

    return change


def interleaved(x):
    """Applies an incorrect rotary embedding that pairs neighbours instead of split halves."""
    cos, sin = attention.rotary_tables(x.shape[1], x.shape[-1])
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return jnp.stack([even * cos + odd * sin, odd * cos - even * sin], axis=-1).reshape(x.shape)


def tables(base=100_000.0, sign=1.0):
    def made(length, dim):
        angles = np.outer(np.arange(length), base ** -(np.arange(0, dim, 2) / dim))
        return np.cos(angles).astype("f"), sign * np.sin(angles).astype("f")

    return made


attend = attention.attend
MISTAKES = {
    "no smear": ("a", drop("smear_lambda"), None),
    "no backout": ("a", drop("backout_lambda"), None),
    "no x0": ("a", drop("x0_lambdas"), None),
    "no value gate in a": ("a", drop("blocks", 2, "attn", "ve_gate", "kernel"), None),
    "no value gate in b": ("b", drop("blocks", 3, "attn", "ve_gate", "kernel"), None),
    "rotary base": ("a", None, (attention, "rotary_tables", tables(base=10_000.0))),
    "rotary sign": ("a", None, (attention, "rotary_tables", tables(sign=-1.0))),
    "rotary interleaved": ("a", None, (attention, "rotate", interleaved)),
    "no q and k scale": ("a", None, (gpt, "QK_SCALE", 1.0)),
    "no softcap": ("a", None, (gpt, "SOFTCAP", 1e4)),
    "another eps": ("a", None, (gpt, "NORM_EPS", 1e-6)),
    "window off by one": (
        "b",
        None,
        (attention, "attend", lambda q, k, v, w, i: attend(q, k, v, w - 1, i)),
    ),
    "tiled kv heads": (
        "b",
        None,
        (
            attention,
            "attend",
            lambda q, k, v, w, i: attend(
                q, jnp.tile(k, (1, 1, 2, 1)), jnp.tile(v, (1, 1, 2, 1)), w, i
            ),
        ),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_moves_the_logits_by_more_than_the_gate(mistake, monkeypatch):
    name, change, patch = MISTAKES[mistake]
    reference = Reference(FIGURES / f"{name}.npz")
    params = jax.tree.map(jnp.asarray, reference.params)
    if change:
        change(params)
    forward = apply
    if patch:
        monkeypatch.setattr(*patch)
        forward = gpt.apply  # the compiled function would not see the patch
    logits = forward(reference.config, params, reference["idx"])
    assert np.abs(logits - reference["logits"]).max() > 5 * GATE


def test_vmap_over_parameters_equals_single_calls():
    params = random_params(SMALL)
    stacked = jax.tree.map(lambda x: jnp.stack([x, -1.5 * x]), params)
    idx = tokens(SMALL)
    lanes = jax.jit(jax.vmap(lambda p: gpt.apply(SMALL, p, idx)))(stacked)
    for lane in range(2):
        alone = apply(SMALL, jax.tree.map(lambda x, i=lane: x[i], stacked), idx)
        np.testing.assert_allclose(lanes[lane], alone, atol=2e-5)


def test_init_and_apply_work_inside_scan_and_shard_map():
    mesh = jax.make_mesh((1,), ("population",), axis_types=(jax.sharding.AxisType.Auto,))
    config = with_fields(SMALL, n_layer=1)
    idx = tokens(config)
    targets = np.roll(idx, -1, axis=1)

    def descend(params, _):
        value, gradient = jax.value_and_grad(
            lambda p: loss.mean_loss(gpt.apply(config, p, idx), targets)
        )(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

    def train(keys):
        params = jax.vmap(lambda key: gpt.init_params(config, key))(keys)
        return jax.vmap(lambda p: jax.lax.scan(descend, p, length=5)[1])(params)

    spec = jax.sharding.PartitionSpec("population")
    sharded = jax.shard_map(train, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    losses = jax.jit(sharded)(jax.random.split(jax.random.key(0), 2))
    assert losses.shape == (2, 5)
    assert (losses[:, -1] < losses[:, 0]).all()


def test_bfloat16_keeps_logits_in_float32_and_masters_in_float32():
    config = with_fields(SMALL, n_layer=1, dtype="bfloat16")
    params = random_params(config)
    attn = params["blocks"][0]["attn"]
    assert (
        params["wte"]["embedding"].dtype == attn["value_embed"]["embedding"].dtype == jnp.bfloat16
    )
    assert attn["c_q"]["kernel"].dtype == params["lm_head"]["kernel"].dtype == jnp.float32
    idx = tokens(config)
    logits = apply(config, params, idx)
    gradient = jax.jit(jax.grad(lambda p: loss.mean_loss(gpt.apply(config, p, idx), idx)))(params)
    exact = apply(
        with_fields(SMALL, n_layer=1), jax.tree.map(lambda x: x.astype(jnp.float32), params), idx
    )
    assert logits.dtype == jnp.float32 and np.isfinite(loss.mean_loss(logits, idx))
    assert all(np.isfinite(g.astype(jnp.float32)).all() for g in jax.tree.leaves(gradient))
    assert np.abs(logits - exact).mean() < 0.05 * np.abs(exact).mean()


def test_the_structure_is_built_once_for_a_config():
    params = random_params(SMALL)
    jax.eval_shape(lambda: gpt.apply(SMALL, params, tokens(SMALL)))
    built = gpt._graphdef.cache_info().misses
    jax.eval_shape(lambda: gpt.apply(with_fields(SMALL), params, tokens(SMALL, batch=3)))
    assert gpt._graphdef.cache_info().misses == built


@pytest.mark.parametrize(
    ("sequence_len", "pattern", "windows"),
    [
        (512, "SSSL", (128, 128, 128, 512, 512)),
        (513, "SL", (256, 513, 256, 513, 513)),
        (2048, "s", (512, 512, 512, 512, 2048)),
        (32, "S", (128, 128, 128, 128, 32)),
    ],
)
def test_windows_follow_the_pattern_and_the_last_layer_is_long(sequence_len, pattern, windows):
    config = with_fields(SMALL, n_layer=5, sequence_len=sequence_len, window_pattern=pattern)
    assert config.windows == windows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
        ({"vocab_size": 10.0}, "vocab_size must be an integer, got 10.0"),
        ({"n_head": True}, "n_head must be an integer, got True"),
        ({"n_embd": 20}, "n_embd must be at least 24, .*, got 20"),
        ({"n_embd": 34}, "n_embd must be a multiple of n_head = 4, got 34"),
        ({"n_embd": 36}, "n_embd must be an even multiple .*, got 36"),
        ({"n_kv_head": 3}, "n_kv_head must be a divisor of n_head = 4, got 3"),
        ({"window_pattern": ""}, "window_pattern must be .*, got ''"),
        ({"window_pattern": "SX"}, "window_pattern must be .* S .* L .*, got 'SX'"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
        ({"attention": "flash"}, "attention must be xla or cudnn, got 'flash'"),
        ({"attention": "cudnn"}, "attention must be xla unless dtype is bfloat16, got 'cudnn'"),
    ],
)
def test_config_errors_name_field_value_and_rule(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        with_fields(SMALL, **fields)
    assert "\n" not in str(error.value)
