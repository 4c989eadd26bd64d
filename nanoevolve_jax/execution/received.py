"""The config of a received document: what decides results from it, everything else from here.

Evidence cards, run folders and the folders of jobs travel from machine to machine. Such a document
may set the fields of scope `result` in `configs.base.SETTINGS`. A place, a program, a connection or
a device comes from this machine's configuration and flags, whatever the document says.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import SAME, SETTINGS, get_config
from nanoevolve_jax.data import places
from nanoevolve_jax.execution.settings import ConfigError, is_valid, validate

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
