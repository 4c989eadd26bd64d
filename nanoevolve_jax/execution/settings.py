"""Validation of configs, tasks and recipes made from them, and configs of received documents.

Evidence cards, run folders and job folders are copied between machines. Such a document can set
only the fields of scope `result` in `configs.base.SETTINGS`. Paths, programs, connections and
devices always come from the configuration and flags of this machine.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import SAME, SETTINGS, Setting, get_config
from nanoevolve_jax.data import files
from nanoevolve_jax.errors import UserError, must
from nanoevolve_jax.execution.schedules import Recipe, scale_recipe
from nanoevolve_jax.execution.train import Task
from nanoevolve_jax.model.gpt import GPTConfig
from nanoevolve_jax.policy.spec import NANOCHAT, OptimizerSpec


class ConfigError(UserError):
    """Error about an invalid config. Its message names the field, the rule and the value."""


def is_valid(value: Any, setting: Setting) -> bool:
    """Returns whether a value is valid for a field.

    Args:
      value: Value to check.
      setting: Type, bounds and choices of the field.
    """
    if isinstance(setting.default, str):
        # A name with bytes outside Unicode could be written to config.json but not read back.
        is_text = isinstance(value, str) and value == value.encode(errors="ignore").decode() != ""
        return is_text and value in (setting.choices or (value,))
    if isinstance(setting.default, bool):
        return isinstance(value, bool)
    number = int if isinstance(setting.default, int) else int | float
    if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value):
        return False
    return setting.low <= value <= setting.high


def get_setting(config: ConfigDict, path: str) -> Any:
    """Returns the value at a dotted path, such as `train.steps`.

    Args:
      config: Full configuration.
      path: Dotted path of the field.

    Raises:
      KeyError: If the config has no such field.
    """
    node = config
    for name in path.split("."):
        node = node[name]
    return node


def check_fields(config: ConfigDict, settings: Mapping[str, Setting] = SETTINGS) -> None:
    """Checks every field of a config against a table of settings.

    Args:
      config: Config to check.
      settings: Setting of each field by dotted path.

    Raises:
      ConfigError: If a field is invalid, missing or unknown.
    """
    for path, setting in settings.items():
        try:
            value = get_setting(config, path)
        except (KeyError, TypeError):
            raise ConfigError(f"config.{path} must be given: {setting.limits}") from None
        if not is_valid(value, setting):
            raise ConfigError(must(f"config.{path}", f"be {setting.limits}", value))
    for path in flat(config.to_dict()):
        if path not in settings:
            raise ConfigError(unknown_field(path, settings))


def unknown_field(path: str, settings: Mapping[str, Setting] = SETTINGS) -> str:
    """Returns an error message about a field that does not exist.

    Args:
      path: Dotted path of the unknown field.
      settings: Setting of each known field by dotted path. The message suggests the closest path.
    """
    near = difflib.get_close_matches(path, settings, n=1)
    hint = f"; did you mean config.{near[0]}?" if near else ""
    return f"config.{path} is not a field of this configuration{hint}"


def validate(config: ConfigDict) -> None:
    """Checks every field of a config and the rules that involve two fields.

    Args:
      config: Full configuration.

    Raises:
      ConfigError: If a field is invalid, missing or unknown, or two fields contradict each other.
    """
    check_fields(config)
    if config.search.survivors > config.search.population:
        rule = f"be at most config.search.population, {config.search.population}"
        raise ConfigError(must("config.search.survivors", rule, config.search.survivors))
    if config.confirm.first_seeds >= config.confirm.seeds:
        rule = f"be less than config.confirm.seeds, {config.confirm.seeds}"
        raise ConfigError(must("config.confirm.first_seeds", rule, config.confirm.first_seeds))
    if config.distributed != "none" and config.engine != "local":
        rule = f"be local when config.distributed is {config.distributed!r}"
        raise ConfigError(must("config.engine", rule, config.engine))
    _check_data_parallel(config)
    make_task(config)


def _check_data_parallel(config: ConfigDict) -> None:
    parts = config.data_parallel
    for path in ("devices", "train.batch_size"):
        value = get_setting(config, path)
        if value % parts:  # 0 stands for all devices, whose number `use_devices` checks
            raise ConfigError(must("config.data_parallel", f"divide config.{path}, {value}", parts))
    if parts > 1 and config.lanes > 1:
        rule = f"be 0 or 1 when config.data_parallel is above 1, here {parts}"
        raise ConfigError(must("config.lanes", rule, config.lanes))


def make_task(config: ConfigDict) -> Task:
    """Returns the static part of the training program.

    Args:
      config: Full configuration.

    Raises:
      ConfigError: If the fields of the model contradict each other.
    """
    try:
        model = GPTConfig(vocab_size=config.data.vocab_size, **config.model)
    except ValueError as error:
        raise ConfigError(str(error).replace("GPTConfig.", "config.model.", 1)) from None
    dtype = jnp.bfloat16 if config.model.dtype == "bfloat16" else jnp.float32
    return Task(model, config.train.batch_size, dtype, config.data_parallel)


def with_recipe(config: ConfigDict, recipe: dict[str, float]) -> ConfigDict:
    """Returns a copy of a config with some fields of the recipe replaced.

    Args:
      config: Full configuration, which is left unchanged.
      recipe: New values by field name.
    """
    changed = config.copy_and_resolve_references()
    changed.recipe.update(recipe)
    return changed


def make_recipe(config: ConfigDict, steps: int = 0) -> Recipe:
    """Returns NanoChat's recipe scaled to the batch, width and horizon of a config.

    Args:
      config: Full configuration.
      steps: Horizon in steps, where 0 means `train.steps`.
    """
    return scale_recipe(
        Recipe(**{name: config.recipe[name] for name in Recipe._fields}),
        batch_tokens=config.train.batch_size * config.model.sequence_len,
        total_steps=steps or config.train.steps,
        width=config.model.n_embd,
    )


def make_baseline(config: ConfigDict) -> OptimizerSpec:
    """Returns NanoChat's policy with the momentum and second-moment decay of a config.

    Args:
      config: Full configuration.
    """
    return NANOCHAT._replace(
        momentum=config.recipe.momentum, second_moment_beta=config.recipe.second_moment_beta
    )


# Received documents ------------------------------------------------------------------------

_FOLDER = "parquet"  # kind of corpus that is a folder on this machine


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings by dotted path.

    Args:
      document: Nested mappings with string keys.
      prefix: Start of every path, either empty or ending in a dot.
    """
    return {
        path: leaf
        for name, value in document.items()
        for path, leaf in (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        ).items()
    }


def received(document: Any, here: ConfigDict, source: str) -> ConfigDict:
    """Returns a full config that combines a received one with the config of this machine.

    Args:
      document: Received config as JSON. Fields that an older document lacks get their defaults.
      here: Config of this machine. Fields that it lacks get their defaults.
      source: Name of the document in error messages.

    Returns:
      Full configuration. Its fields of scope `result` come from the document, and its fields of
      scope `machine` come from `here`.

    Raises:
      ConfigError: If the document is not a config, has an unknown field or an invalid value, or the
        combined config is invalid.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"the config of {source} must be an object, got {document!r:.80}")
    config, machine = get_config(), flat(here.to_dict())
    for path, setting in SETTINGS.items():
        if setting.scope == "machine" and path in machine:
            config.update_from_flattened_dict({path: machine[path]})
    for path, value in flat(document).items():
        if path not in SETTINGS:
            raise ConfigError(f"config.{path:.80} of {source} must be a known field")
        setting = SETTINGS[path]
        if setting.scope == "result":
            if not is_valid(value, setting):
                raise ConfigError(
                    f"config.{path} of {source} must be {setting.limits}, got {value!r:.80}"
                )
            config.update_from_flattened_dict({path: value})
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def is_folder(corpus: str) -> bool:
    """Returns whether a corpus is a folder, so that its name contains a path.

    Args:
      corpus: Name of a corpus, such as `parquet:DIR`.
    """
    return corpus.partition(":")[0] == _FOLDER


def corpus_here(
    named: str, given: str, cache_dir: str, fingerprint: Any, field: str, source: str
) -> str:
    """Returns the name on this machine of the corpus of a received document.

    Args:
      named: Name of the corpus in the document.
      given: Name of the corpus given by the user, or `SAME` to use the document's corpus.
      cache_dir: Cache folder of this machine.
      fingerprint: Fingerprint of the text in the document, or None. A folder is looked up in the
        cache by it.
      field: Name of the config field in error messages.
      source: Name of the document in error messages.

    Raises:
      ConfigError: If the document names a folder whose path on this machine is unknown.
    """
    if given != SAME:
        return given
    if not is_folder(named):
        return named
    folder = files.find_corpus(cache_dir, fingerprint)
    if folder is None:
        raise ConfigError(
            f"config.{field} must be parquet:DIR, the folder of the text"
            f"{f' {fingerprint}' if isinstance(fingerprint, str) else ''} on this machine, because "
            f"{source} names a folder and config.data.cache_dir ({cache_dir}) has no record of it"
        )
    return f"{_FOLDER}:{folder}"
