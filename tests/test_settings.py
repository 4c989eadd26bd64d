"""Configurations are validated field by field, and NanoChat's recipe scales by its own rules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.configs import base, screen
from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.execution import schedules
from nanoevolve_jax.execution.schedules import Recipe, scale_recipe
from nanoevolve_jax.execution.settings import ConfigError, get_setting, make_recipe, validate


def config_with(**values):
    """Returns the default config with replaced fields of any type; `__` stands for a dot."""
    config = base.get_config()
    for key, value in values.items():
        group, _, name = key.rpartition("__")
        node = config[group] if group else config
        with node.ignore_type():
            node[name] = value
    return config


def refusal(config):
    with pytest.raises(ConfigError) as caught:
        validate(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


WRONG = {
    "train.steps": [0, 0.5, 2.0, True, "1", None, [1], math.nan, math.inf],
    "recipe.matrix_lr": [-0.1, 0.0, "1", None, [1], math.nan, -math.inf],
    "seed": [-1, 2**32, 1.5],
    "track.wandb": ["", "true", 0, 1, None],
    "workdir": ["", 0, None, True],
    "model.attention": ["", "nonsense", "XLA", 0, None],
}


@pytest.mark.parametrize("path", WRONG)
def test_a_field_refuses_values_of_a_wrong_type_or_size(path):
    for value in WRONG[path]:
        message = refusal(config_with(**{path.replace(".", "__"): value}))
        assert message.startswith(f"config.{path} must be ")
        assert message.endswith(f", got {value!r}")


def test_every_field_is_checked_and_named_when_it_is_missing_or_beyond_its_bounds():
    for path, setting in SETTINGS.items():
        config = base.get_config()
        group, _, name = path.rpartition(".")
        del (config[group] if group else config)[name]
        assert refusal(config).startswith(f"config.{path} must be given: ")
        for bound, sign in ((setting.low, -1), (setting.high, 1)):
            if bound is not None:
                beyond = config_with(**{path.replace(".", "__"): bound + sign})
                assert refusal(beyond).startswith(f"config.{path} must be ")


@pytest.mark.parametrize("path", ["trian", "train__stpes", "recipe__learning_rate"])
def test_an_unknown_field_is_named(path):
    dotted = path.replace("__", ".")
    assert refusal(config_with(**{path: 5})).startswith(f"config.{dotted} is not a field")


CROSS_FIELD = [
    ({"model__n_embd": 65}, "model.n_embd", "n_head = 2"),
    ({"model__n_embd": 66}, "model.n_embd", "even"),
    ({"model__n_kv_head": 3}, "model.n_kv_head", "n_head = 2"),
    ({"model__window_pattern": "SXL"}, "model.window_pattern", "S"),
    ({"model__attention": "cudnn"}, "model.attention", "bfloat16"),
    ({"data_parallel": 3}, "data_parallel", "batch_size, 8"),
    ({"data_parallel": 4, "devices": 6}, "data_parallel", "devices, 6"),
    ({"lanes": 2, "data_parallel": 4}, "lanes", "here 4"),
    ({"engine": "ray", "distributed": "auto"}, "engine", "'auto'"),
    ({"search__survivors": 9}, "search.survivors", "8"),
    ({"confirm__first_seeds": 20}, "confirm.first_seeds", "confirm.seeds, 20"),
]


@pytest.mark.parametrize(("values", "path", "rule"), CROSS_FIELD)
def test_an_error_about_two_fields_names_both(values, path, rule):
    message = refusal(config_with(**values))
    assert message.startswith(f"config.{path} must be") or " must divide " in message
    assert rule in message
    assert message.endswith(f", got {next(iter(values.values()))!r}")


def test_text_that_cannot_be_read_again_is_refused():
    config = base.get_config()
    config.workdir = "runs/\udcff"
    with pytest.raises(ConfigError, match=r"config\.workdir must be non-empty Unicode text, got "):
        validate(config)


@pytest.mark.parametrize("variant", screen.VARIANTS)
def test_every_variant_of_the_screening_config_is_valid(variant):
    validate(screen.get_config(variant))


def test_an_unknown_variant_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="be cpu or d4 or d12, got 'd13'"):
        screen.get_config("d13")


def test_the_default_config_holds_exactly_the_fields_of_the_table():
    config = base.get_config()
    for path, setting in SETTINGS.items():
        assert get_setting(config, path) == setting.default
    assert sum(len(v) if hasattr(v, "keys") else 1 for v in config.values()) == len(SETTINGS)


# NanoChat's recipe -------------------------------------------------------------------------

NANOCHAT_RECIPE = Recipe(*[base.get_config().recipe[name] for name in Recipe._fields])
LR_FIELDS = ("matrix_lr", "embedding_lr", "unembedding_lr", "scalar_lr", "smear_lr")


def test_nothing_is_scaled_at_the_reference_batch_horizon_and_width():
    # d12 has 12 layers of 12 * 768^2 matrix parameters and a head of 32768 * 768. It trains on 12
    # tokens per parameter, which is 2,520 steps of 2^19 tokens.
    parameters = 12 * 12 * 768**2 + 32768 * 768
    assert 12 * parameters == 2520 * 2**19
    scaled = scale_recipe(NANOCHAT_RECIPE, batch_tokens=2**19, total_steps=2520, width=768)
    np.testing.assert_allclose(scaled, NANOCHAT_RECIPE, rtol=1e-12)


@given(
    rows=st.integers(1, 4096),
    length=st.integers(2, 4096),
    steps=st.integers(1, 10**6),
    width=st.sampled_from([24, 64, 128, 768, 2048]),
)
def test_the_recipe_is_scaled_by_nanochats_rules(rows, length, steps, width):
    config = config_with(
        train__batch_size=rows,
        train__steps=steps,
        model__sequence_len=length,
        model__n_embd=width,
    )
    scaled, tokens = make_recipe(config), rows * length
    batch_factor = math.sqrt(tokens / 524_288)
    width_factor = 1 / math.sqrt(width / 768)
    factors = {
        "matrix_lr": batch_factor,
        "scalar_lr": batch_factor,
        "embedding_lr": batch_factor * width_factor,
        "unembedding_lr": batch_factor * width_factor,
        "weight_decay": batch_factor * (2520 * 524_288) / (tokens * steps),
    }
    for name, value in NANOCHAT_RECIPE._asdict().items():
        assert getattr(scaled, name) == pytest.approx(value * factors.get(name, 1.0), rel=1e-9)


# NanoChat's schedules, as its training script states them ----------------------------------

WARMUP, MOMENTUM_WARMUP, WARMDOWN_RATIO, FINAL_FRACTION, DECAY = 40, 400, 0.65, 0.05, 0.28


def reference_lr(step, total):
    warmdown = round(WARMDOWN_RATIO * total)
    if step < WARMUP:
        return (step + 1) / WARMUP
    if step <= total - warmdown:
        return 1.0
    progress = (total - step) / warmdown
    return progress + (1 - progress) * FINAL_FRACTION


def reference_momentum(step, total):
    warmdown = round(WARMDOWN_RATIO * total)
    if step < MOMENTUM_WARMUP:
        share = step / MOMENTUM_WARMUP
        return (1 - share) * 0.85 + share * 0.97
    if step >= total - warmdown:
        progress = (step - (total - warmdown)) / warmdown
        return 0.97 * (1 - progress) + 0.90 * progress
    return 0.97


def reference_decay(step, total):
    return DECAY * 0.5 * (1 + math.cos(math.pi * step / total))


@jax.jit
def traced_schedules(recipe, step, total):
    return jnp.stack(
        [
            schedules.lr_multiplier(recipe, step, total),
            schedules.muon_momentum(jnp.float32(0.97), recipe, step, total),
            schedules.muon_weight_decay(recipe, step, total),
        ]
    )


def recipe_at(total):
    """Returns NanoChat's recipe in float32, with its warm-ups converted to fractions of steps."""
    recipe = NANOCHAT_RECIPE._replace(
        warmup_fraction=WARMUP / total, momentum_warmup_fraction=MOMENTUM_WARMUP / total
    )
    return Recipe(*map(np.float32, recipe))


@given(data=st.data(), total=st.one_of(st.integers(1, 6000), st.sampled_from([1000, 2520, 5000])))
def test_schedules_are_those_of_nanochats_script(data, total):
    warmdown = round(WARMDOWN_RATIO * total)
    corners = [0, WARMUP - 1, WARMUP, MOMENTUM_WARMUP - 1, MOMENTUM_WARMUP, total - 1]
    corners += [total - warmdown + shift for shift in (-1, 0, 1)]
    corners = [step for step in corners if 0 <= step < total]
    step = data.draw(st.one_of(st.integers(0, total - 1), st.sampled_from(corners)))
    actual = traced_schedules(recipe_at(total), np.int32(step), np.int32(total))
    expected = [f(step, total) for f in (reference_lr, reference_momentum, reference_decay)]
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def test_warmdown_begins_at_the_step_that_pythons_rounding_gives():
    totals = np.arange(1, 10_001, dtype=np.int32)
    first = np.asarray([t - round(WARMDOWN_RATIO * int(t)) for t in totals], np.int32)
    recipe = recipe_at(1)._replace(warmup_fraction=np.float32(0))
    before = schedules.lr_multiplier(recipe, first, totals)
    after = schedules.lr_multiplier(recipe, first + 1, totals)
    np.testing.assert_array_equal(before, np.ones(len(totals)))
    assert (np.asarray(after) < 1.0).all()


def test_the_default_recipe_gives_nanochats_steps_at_its_own_horizon():
    recipe = Recipe(*map(np.float32, NANOCHAT_RECIPE))
    for step in range(0, 2520, 7):
        lr, momentum, _ = traced_schedules(recipe, np.int32(step), np.int32(2520))
        assert float(lr) == pytest.approx(reference_lr(step, 2520), rel=2e-5)
        # 0.16 of 2,520 steps rounds to 403 and not to 400.
        assert float(momentum) == pytest.approx(reference_momentum(step, 2520), abs=1e-3)


@given(total=st.integers(50, 20_000))
def test_a_short_run_sees_the_whole_momentum_schedule(total):
    recipe = Recipe(*map(np.float32, NANOCHAT_RECIPE))
    steps = {"first": 0, "plateau": round(0.2 * total), "last": total - 1}
    values = {
        name: float(traced_schedules(recipe, np.int32(step), np.int32(total))[1])
        for name, step in steps.items()
    }
    assert values["first"] == pytest.approx(0.85, abs=1e-6)
    assert values["plateau"] == pytest.approx(0.97, abs=1e-6)
    assert values["last"] == pytest.approx(0.90, abs=0.07 / (0.6 * total) + 1e-6)


@given(plateau=st.floats(0.0, 0.99), share=st.floats(0, 0.999))
def test_momentum_stays_a_momentum_for_any_plateau(plateau, share):
    step = np.int32(share * 1000)
    value = float(schedules.muon_momentum(plateau, NANOCHAT_RECIPE, step, 1000))
    assert 0.0 <= value <= plateau + 1e-6
