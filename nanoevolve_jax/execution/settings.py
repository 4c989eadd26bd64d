"""Configs: validation, what a run is made of, and what a received document may set.

Evidence cards, run folders and the folders of jobs travel from machine to machine. Such a document
may set the fields of scope `result` in `configs.base.SETTINGS`. A place, a program, a connection or
a device comes from this machine's configuration and flags, whatever the document says.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import SAME, SETTINGS, Setting, get_config
from nanoevolve_jax.data import places
from nanoevolve_jax.errors import UserError, must
from nanoevolve_jax.execution.schedules import Recipe, scale_recipe
from nanoevolve_jax.execution.train import Task
from nanoevolve_jax.model.gpt import GPTConfig
from nanoevolve_jax.policy.spec import NANOCHAT, OptimizerSpec


class ConfigError(UserError):
    """A config that cannot run; the message names the field, the value and what is allowed."""


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
            raise ConfigError(f"config.{path} must be given: {setting.limits}") from None
        if not is_valid(value, setting):
            raise ConfigError(must(f"config.{path}", f"be {setting.limits}", value))
    for path in _paths(config.to_dict()):
        if path not in settings:
            raise ConfigError(unknown_field(path, settings))


def unknown_field(path: str, settings: Mapping[str, Setting] = SETTINGS) -> str:
    """Returns the text of an error about a field that does not exist."""
    near = difflib.get_close_matches(path, settings, n=3)
    hint = f"; did you mean {' or '.join(f'config.{name}' for name in near)}?" if near else ""
    return f"config.{path} is not a field of this configuration{hint}"


def validate(config: ConfigDict) -> None:
    """Checks every field of a search's config, and the few that depend on others.

    Raises:
      ConfigError: naming the first field that is wrong.
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
        if value % parts:  # no devices means all of them, which `use_devices` counts
            raise ConfigError(must("config.data_parallel", f"divide config.{path}, {value}", parts))
    if parts > 1 and config.lanes > 1:
        rule = f"be 0 or 1 when config.data_parallel is above 1, here {parts}"
        raise ConfigError(must("config.lanes", rule, config.lanes))


def make_task(config: ConfigDict) -> Task:
    """The static part of the training program."""
    try:
        model = GPTConfig(vocab_size=config.data.vocab_size, **config.model)
    except ValueError as error:
        raise ConfigError(str(error).replace("GPTConfig.", "config.model.", 1)) from None
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


_FOLDER = "parquet"  # the kind of text that has a place


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
      ConfigError: if the document is not a config, or a field that is taken from it is invalid.
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
    """Whether a corpus is a folder, so that its name contains a place."""
    return corpus.partition(":")[0] == _FOLDER


def corpus_here(
    named: str, given: str, cache_dir: str, fingerprint: Any, field: str, source: str
) -> str:
    """Returns the corpus that a received document names, as this machine finds it.

    Args:
      named: Corpus as the document names it.
      given: Corpus that the user names, or `SAME`.
      cache_dir: Cache folder of this machine.
      fingerprint: Fingerprint of the text in the document; None if it has none. It is compared
        with the fingerprint of the text when that is loaded.
      field: Name of the config field.
      source: Name of the document in error messages.

    Raises:
      ConfigError: if the document names a folder, and where that is on this machine is not known.
    """
    if given != SAME:
        return given
    if not is_folder(named):
        return named
    folder = places.find(cache_dir, fingerprint)
    if folder is None:
        raise ConfigError(
            f"config.{field} must be parquet:DIR, the folder of the text"
            f"{f' {fingerprint}' if isinstance(fingerprint, str) else ''} on this machine, because "
            f"{source} names a folder and config.data.cache_dir ({cache_dir}) does not know it"
        )
    return f"{_FOLDER}:{folder}"
