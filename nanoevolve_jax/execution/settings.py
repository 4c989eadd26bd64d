"""Configs: validation, the task and recipe they describe, and configs of received documents.

Evidence cards, run folders and folders of jobs travel between machines. Such a document sets only
fields of scope `result` in `configs.base.SETTINGS`. Paths, programs, connections and devices always
come from the configuration and flags of this machine.
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
    """An invalid config; the message names the field, the rule and the value."""


def is_valid(value: Any, setting: Setting) -> bool:
    """Returns whether a value is valid for a field."""
    if isinstance(setting.default, str):
        # A name with bytes outside Unicode could be written to config.json, but not read again.
        is_text = isinstance(value, str) and value == value.encode(errors="ignore").decode() != ""
        return is_text and value in (setting.choices or (value,))
    if isinstance(setting.default, bool):
        return isinstance(value, bool)
    number = int if isinstance(setting.default, int) else int | float
    if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value):
        return False
    return setting.low <= value <= setting.high


def get_setting(config: ConfigDict, path: str) -> Any:
    """Returns the value at a dotted path, such as `train.steps`."""
    node = config
    for name in path.split("."):
        node = node[name]
    return node


def check_fields(config: ConfigDict, settings: Mapping[str, Setting] = SETTINGS) -> None:
    """Checks every field of a config against a table of settings.

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
    """Returns the text of an error about a field that does not exist."""
    near = difflib.get_close_matches(path, settings, n=1)
    hint = f"; did you mean config.{near[0]}?" if near else ""
    return f"config.{path} is not a field of this configuration{hint}"


def validate(config: ConfigDict) -> None:
    """Checks every field of a config, and the rules that involve two fields.

    Raises:
      ConfigError: If a field is invalid, missing or unknown.
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
        if value % parts:  # 0 devices means all of them, and `use_devices` checks those
            raise ConfigError(must("config.data_parallel", f"divide config.{path}, {value}", parts))
    if parts > 1 and config.lanes > 1:
        rule = f"be 0 or 1 when config.data_parallel is above 1, here {parts}"
        raise ConfigError(must("config.lanes", rule, config.lanes))


def make_task(config: ConfigDict) -> Task:
    """Returns the static part of the training program."""
    try:
        model = GPTConfig(vocab_size=config.data.vocab_size, **config.model)
    except ValueError as error:
        raise ConfigError(str(error).replace("GPTConfig.", "config.model.", 1)) from None
    dtype = jnp.bfloat16 if config.model.dtype == "bfloat16" else jnp.float32
    return Task(model, config.train.batch_size, dtype, config.data_parallel)


def with_recipe(config: ConfigDict, recipe: dict[str, float]) -> ConfigDict:
    """Returns a copy of a config with some fields of the recipe replaced."""
    changed = config.copy_and_resolve_references()
    changed.recipe.update(recipe)
    return changed


def make_recipe(config: ConfigDict, steps: int = 0) -> Recipe:
    """Returns NanoChat's recipe for this batch, width and horizon (0 means `train.steps`)."""
    return scale_recipe(
        Recipe(**{name: config.recipe[name] for name in Recipe._fields}),
        batch_tokens=config.train.batch_size * config.model.sequence_len,
        total_steps=steps or config.train.steps,
        width=config.model.n_embd,
    )


def make_baseline(config: ConfigDict) -> OptimizerSpec:
    """Returns NanoChat's policy with the momentum and second-moment decay of the config."""
    return NANOCHAT._replace(
        momentum=config.recipe.momentum, second_moment_beta=config.recipe.second_moment_beta
    )


# Received documents ------------------------------------------------------------------------

_FOLDER = "parquet"  # kind of corpus that is a folder of this machine


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings by dotted path."""
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
    """Returns a full config from a received one.

    Args:
      document: Config as JSON. Fields that it lacks, because it is older, have their defaults.
      here: Config of this machine; it may lack fields, which then have their defaults.
      source: Name of the document in error messages.

    Raises:
      ConfigError: If the document is not a config, or a field that it sets is invalid.
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
    """Returns whether a corpus is a folder, so that its name contains a path."""
    return corpus.partition(":")[0] == _FOLDER


def corpus_here(
    named: str, given: str, cache_dir: str, fingerprint: Any, field: str, source: str
) -> str:
    """Returns the corpus of a received document under its name on this machine.

    Args:
      named: Corpus as the document names it.
      given: Corpus that the user names, or `SAME`.
      cache_dir: Cache folder of this machine.
      fingerprint: Fingerprint of the text in the document, or None; the text is compared with it
        when it is loaded.
      field: Name of the config field.
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
