"""From a config to the things a run is made of, every mistake named before training starts."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import SETTINGS, Setting
from nanoevolve_jax.errors import UserError
from nanoevolve_jax.execution.schedules import Recipe, scale_recipe
from nanoevolve_jax.execution.train import Task
from nanoevolve_jax.model.gpt import GPTConfig
from nanoevolve_jax.policy.spec import NANOCHAT, OptimizerSpec


class ConfigError(UserError):
    """A config that cannot run; the message names the field, the value and what is allowed."""


def allowed(setting: Setting) -> str:
    """What a field may hold, in words: 'an integer from 1 to 128'."""
    if setting.choices:
        return " or ".join(setting.choices)
    if isinstance(setting.default, str):
        return "text that is not empty, in Unicode"
    if isinstance(setting.default, bool):
        return "False or True"
    kind = "an integer" if isinstance(setting.default, int) else "a number"
    return f"{kind} from {setting.low:g} to {setting.high:g}"


def is_valid(value: Any, setting: Setting) -> bool:
    """Whether a field may hold a value."""
    if isinstance(setting.default, str):
        # Bytes of a name that are no Unicode could be written to config.json, and not read again.
        is_text = isinstance(value, str) and value == value.encode(errors="ignore").decode() != ""
        return is_text and value in (setting.choices or (value,))
    if isinstance(setting.default, bool):
        return isinstance(value, bool)
    number = int if isinstance(setting.default, int) else int | float
    if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value):
        return False
    return setting.low <= value <= setting.high


def get_setting(config: ConfigDict, path: str) -> Any:
    """The value at a dotted path."""
    node = config
    for name in path.split("."):
        node = node[name]
    return node


def _paths(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix.rstrip(".")]
    return [path for name in node for path in _paths(node[name], f"{prefix}{name}.")]


def check_fields(config: ConfigDict, settings: Mapping[str, Setting] = SETTINGS) -> None:
    """Checks every field of a config against its table.

    Raises:
      ConfigError: naming the first field that is wrong, missing or unknown.
    """
    for path, setting in settings.items():
        try:
            value = get_setting(config, path)
        except (KeyError, TypeError):
            raise ConfigError(f"config.{path} is missing; allowed: {allowed(setting)}") from None
        if not is_valid(value, setting):
            raise ConfigError(f"config.{path} is {value!r}; allowed: {allowed(setting)}")
    for path in _paths(config.to_dict()):
        if path not in settings:
            raise ConfigError(f"config.{path} is unknown; allowed: {', '.join(settings)}")


def validate(config: ConfigDict) -> None:
    """Checks every field of a search's config, and the few that depend on others.

    Raises:
      ConfigError: naming the first field that is wrong.
    """
    check_fields(config)
    if config.search.survivors > config.search.population:
        raise ConfigError(
            f"config.search.survivors is {config.search.survivors}; "
            f"allowed: at most config.search.population, {config.search.population}"
        )
    if config.confirm.first_seeds >= config.confirm.seeds:
        raise ConfigError(
            f"config.confirm.first_seeds is {config.confirm.first_seeds}; "
            f"allowed: fewer than config.confirm.seeds, {config.confirm.seeds}"
        )
    if config.distributed != "none" and config.engine != "local":
        raise ConfigError(
            f"config.engine is {config.engine!r}; allowed: local where config.distributed is "
            f"{config.distributed!r}, for each of the two shares out candidates in its own way"
        )
    _check_data_parallel(config)
    make_task(config)


def _check_data_parallel(config: ConfigDict) -> None:
    parts = config.data_parallel
    for path in ("devices", "train.batch_size"):
        value = get_setting(config, path)
        if value % parts:  # no devices means all of them, which `use_devices` counts
            raise ConfigError(
                f"config.data_parallel is {parts}; allowed: a divisor of config.{path}, {value}"
            )
    if parts > 1 and config.lanes > 1:
        raise ConfigError(
            f"config.lanes is {config.lanes}; allowed: 0 or 1 where config.data_parallel, {parts}, "
            "is above 1: devices share a candidate that is large"
        )


def make_task(config: ConfigDict) -> Task:
    """The static part of the training program."""
    try:
        model = GPTConfig(vocab_size=config.data.vocab_size, **config.model)
    except ValueError as error:
        message = str(error).replace("GPTConfig.", "config.model.", 1)
        raise ConfigError(message.replace("; it must be ", "; allowed: ", 1)) from None
    dtype = jnp.bfloat16 if config.model.dtype == "bfloat16" else jnp.float32
    return Task(model, config.train.batch_size, dtype, config.data_parallel)


def with_recipe(config: ConfigDict, recipe: dict[str, float]) -> ConfigDict:
    """A copy of the config with recipe fields replaced."""
    changed = config.copy_and_resolve_references()
    changed.recipe.update(recipe)
    return changed


def make_recipe(config: ConfigDict, steps: int = 0) -> Recipe:
    """NanoChat's recipe scaled to this batch and width, and to a horizon (0: `train.steps`)."""
    return scale_recipe(
        Recipe(**{name: config.recipe[name] for name in Recipe._fields}),
        batch_tokens=config.train.batch_size * config.model.sequence_len,
        total_steps=steps or config.train.steps,
        width=config.model.n_embd,
    )


def make_baseline(config: ConfigDict) -> OptimizerSpec:
    """NanoChat's policy with the config's momentum and second-moment decay."""
    return NANOCHAT._replace(
        momentum=config.recipe.momentum, second_moment_beta=config.recipe.second_moment_beta
    )
