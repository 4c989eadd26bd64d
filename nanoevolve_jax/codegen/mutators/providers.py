"""Profiles of providers, with their models, prices and limits.

Profiles are read from a TOML file. `configs/providers.toml` documents every field.
"""

import importlib.util
import math
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators.credentials import is_plain_url, names_secret, redacted
from nanoevolve_jax.configs.lookup import locate
from nanoevolve_jax.errors import must
from nanoevolve_jax.execution.json_files import typed

FILE = "configs/providers.toml"
EXTRA = "nanoevolve-jax[codegen]"
PLACES = ("prompt_file", "answer_file", "folder", "model")
"""Placeholders in braces that the arguments of a command may contain."""
_PLACE = re.compile(r"\{([a-z_]+)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_LISTS = ("env", "command", "text_at", "input_tokens_at", "output_tokens_at", "dollars_at")

Price = Annotated[float, Meta(ge=0, le=1e4)]
Pause = Annotated[float, Meta(ge=0, le=3600)]
Text = Annotated[str, Meta(min_length=1)]


class ProviderError(CodegenError):
    """Error raised if a profile cannot be used."""


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that both kinds of profiles have, documented in `configs/providers.toml`."""

    name: str
    model: Text
    dollars_in: Price
    dollars_out: Price
    max_output_tokens: Annotated[int, Meta(ge=1, le=10**6)]
    dollars_call: Price = 0.0
    overhead_tokens: Annotated[int, Meta(ge=0, le=10**7)] = 0
    timeout_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 600.0
    retries: Annotated[int, Meta(ge=0, le=20)] = 3
    backoff_seconds: Pause = 2.0
    backoff_max_seconds: Pause = 60.0
    key_env: str = ""
    env: tuple[str, ...] = ()

    @property
    def attempts(self) -> int:
        """Largest number of attempts per call."""
        return 1 + self.retries

    def dollars(self, input_tokens: int, output_tokens: int) -> float:
        """Returns the price of an attempt in dollars.

        Args:
          input_tokens: Number of input tokens.
          output_tokens: Number of output tokens.
        """
        tokens = input_tokens * self.dollars_in + output_tokens * self.dollars_out
        return self.dollars_call + tokens / 1e6


class Api(Provider, frozen=True, kw_only=True, tag_field="kind", tag="api"):
    """Profile of an OpenAI-compatible endpoint."""

    base_url: str
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    limit_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    extra_body: dict[str, Any] = {}


class Command(Provider, frozen=True, kw_only=True, tag_field="kind", tag="command"):
    """Profile of a command-line agent."""

    retries: Annotated[int, Meta(ge=0, le=20)] = 0
    command: Annotated[tuple[str, ...], Meta(min_length=1)]
    prompt_on_stdin: bool = False
    text_at: tuple[str, ...] = ()
    input_tokens_at: tuple[str, ...] = ()
    output_tokens_at: tuple[str, ...] = ()
    dollars_at: tuple[str, ...] = ()


def load(path: str | Path = FILE) -> dict[str, Provider]:
    """Returns the profiles of a TOML file by name.

    Args:
      path: Path of the file. A path under `configs/` that does not exist is looked up in the
        installed package.

    Raises:
      ProviderError: If the file or a profile is invalid. The message names the file and the field.
    """
    try:
        with open(locate(str(path)), "rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        raise ProviderError(
            must("providers", f"be a TOML file, such as {FILE}", str(path))
        ) from None
    except (OSError, ValueError) as error:
        raise ProviderError(f"{path} cannot be read as TOML: {error}") from None
    if not document:
        raise ProviderError(f"{path} must have one table per provider, got none")
    profiles = {}
    for name, table in document.items():
        try:
            profiles[name] = _profile(name, table)
        except ValueError as error:
            raise ProviderError(f"{path}: {error}") from None
    return profiles


def _profile(name: str, table: Any) -> Provider:
    if not isinstance(table, dict):
        raise ValueError(f"{name} must be a table")
    lists = {key: [table[key]] for key in _LISTS if isinstance(table.get(key), str)}
    provider = _converted({**table, **lists, "name": name}, name)
    for key, value in table.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(must(f"{name}.{key}", "be finite", value))
    _require_variables(provider)
    if isinstance(provider, Command):
        _require_usable(provider)
    elif not is_plain_url(provider.base_url):
        raise ValueError(f"{name}.base_url {_URL_RULE}")
    elif any(map(names_secret, _keys(provider.extra_body))):
        raise ValueError(f"{name}.extra_body must contain no key; {_KEY_RULE}")
    return provider


def _converted(document: Mapping[str, Any], name: str) -> Provider:
    typed(document, Api | Command, name)
    return msgspec.convert(document, Api | Command)


_KEY_RULE = "name the environment variable that holds the key in key_env"
_URL_RULE = f"must be an http:// or https:// URL without user, password or query; {_KEY_RULE}"


def _require_variables(provider: Provider) -> None:
    """Checks that variables are given by name. Messages omit the value, which may be a key."""
    if provider.key_env and not _VARIABLE.fullmatch(provider.key_env):
        raise ValueError(f"{provider.name}.key_env must be the name of an environment variable")
    if not all(map(_VARIABLE.fullmatch, provider.env)):
        raise ValueError(f"{provider.name}.env must be a list of names of environment variables")


def _require_usable(provider: Command) -> None:
    """Refuses a command that contains a key, has unknown placeholders, or takes no prompt."""
    field, command = f"{provider.name}.command", provider.command
    options = [part.partition("=")[0] for part in command if part.startswith("-")]
    if secret := [option for option in options if names_secret(option)]:
        raise ValueError(f"{field} must contain no key, got the option {secret[0]}; {_KEY_RULE}")
    if {name for part in command for name in _PLACE.findall(part)} - set(PLACES):
        rule = f"use no placeholders but {', '.join(PLACES)}"
        raise ValueError(must(field, rule, list(command)))
    if not provider.prompt_on_stdin and not any("{prompt_file}" in part for part in command):
        rule = "contain {prompt_file} unless prompt_on_stdin is true"
        raise ValueError(must(field, rule, list(command)))


def _keys(value: Any) -> Iterator[str]:
    """Yields the keys of nested tables."""
    if isinstance(value, Mapping):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def filled(command: tuple[str, ...], places: Mapping[str, str]) -> list[str]:
    """Returns the arguments of a command with their placeholders replaced.

    Args:
      command: Arguments with placeholders in braces.
      places: Values of the placeholders by name. Other placeholders are kept.
    """
    return [_PLACE.sub(lambda match: places.get(match[1], match[0]), part) for part in command]


def missing(provider: Provider) -> str | None:
    """Returns the reason why a provider cannot be asked on this machine, or None if it can be.

    Args:
      provider: Profile of the provider.
    """
    if isinstance(provider, Api) and not is_plain_url(provider.base_url):
        return f"its base_url {_URL_RULE}"
    if provider.key_env and not os.environ.get(provider.key_env):
        return f"the environment variable {provider.key_env} is not set"
    packages = ("tenacity", "openai") if isinstance(provider, Api) else ("tenacity",)
    for package in packages:
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed; pip install '{EXTRA}'"
    if isinstance(provider, Command) and shutil.which(provider.command[0]) is None:
        return f"the program {provider.command[0]} is not installed"
    return None


def choose_profile(profiles: Mapping[str, Provider], name: str, field: str) -> Provider:
    """Returns a profile after checking that its provider can be asked on this machine.

    Args:
      profiles: Profiles by name.
      name: Name of the profile.
      field: Name of the flag or config field that contains `name`, for error messages.

    Raises:
      ProviderError: If the profile does not exist, or if this machine lacks something that it
        needs.
    """
    if name not in profiles:
        raise ProviderError(must(field, f"be one of {', '.join(profiles)}", name))
    if lack := missing(profiles[name]):
        raise ProviderError(f"{field} must be a provider that can be asked, got {name!r}: {lack}")
    return profiles[name]


def to_json(provider: Provider) -> dict[str, Any]:
    """Returns a profile as JSON, with the name of the variable that contains its key.

    Args:
      provider: Profile of the provider.
    """
    document = msgspec.to_builtins(provider)
    return document | {"base_url": redacted(document.get("base_url", ""))}


def from_json(document: Mapping[str, Any]) -> Provider:
    """Returns a profile from the JSON that `to_json` returned.

    Args:
      document: Profile as JSON. Unknown fields are ignored.

    Raises:
      ValueError: If a field is missing or invalid.
    """
    kind = Api if document.get("kind") == "api" else Command
    known = {"kind", *kind.__struct_fields__}
    return _converted({k: v for k, v in document.items() if k in known}, "provider")
