"""Who is asked for code: profiles in a TOML file, and what each still needs to be asked.

The file of this package, `configs/providers.toml`, says what every field means.
"""

import importlib.util
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators.credentials import is_plain_url, names_secret, redacted
from nanoevolve_jax.codegen.mutators.profile_fields import KINDS, RULES
from nanoevolve_jax.configs.lookup import locate

FILE = "configs/providers.toml"
EXTRA = "nanoevolve-jax[codegen]"
PLACES = ("prompt_file", "answer_file", "folder", "model")
"""What a command's arguments may name in braces."""
_PLACE = re.compile(r"\{([a-z_]+)\}")  # other braces are the command's own


class ProviderError(CodegenError):
    """A profile that cannot be used."""


@dataclass(frozen=True)
class Provider:
    """One profile; see `configs/providers.toml` for what the fields mean."""

    name: str
    kind: str
    model: str
    dollars_in: float
    dollars_out: float
    max_output_tokens: int
    dollars_call: float = 0.0
    overhead_tokens: int = 0
    timeout_seconds: float = 600.0
    retries: int = 3
    backoff_seconds: float = 2.0
    backoff_max_seconds: float = 60.0
    key_env: str = ""
    env: tuple[str, ...] = ()
    base_url: str = ""
    temperature: float | None = None
    limit_field: str = "max_completion_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    prompt_on_stdin: bool = False
    text_at: tuple[str, ...] = ()
    input_tokens_at: tuple[str, ...] = ()
    output_tokens_at: tuple[str, ...] = ()
    dollars_at: tuple[str, ...] = ()

    @property
    def attempts(self) -> int:
        """How often one call may ask, at most."""
        return 1 + self.retries

    def dollars(self, input_tokens: int, output_tokens: int) -> float:
        """The price of one attempt of so many tokens."""
        tokens = input_tokens * self.dollars_in + output_tokens * self.dollars_out
        return self.dollars_call + tokens / 1e6


def load(path: str | Path = FILE) -> dict[str, Provider]:
    """The profiles of a file, by name; `configs/` stands for the package where there is none.

    Raises:
      ProviderError: naming file, profile, field, value and what is allowed.
    """
    try:
        with open(locate(str(path)), "rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        raise ProviderError(
            f"providers is {str(path)!r}; allowed: a TOML file, such as {FILE}"
        ) from None
    except (OSError, ValueError) as error:
        raise ProviderError(f"{path} cannot be read as TOML: {error}") from None
    if not document:
        raise ProviderError(f"{path} has no profile; allowed: one table a provider")
    return {name: _profile(name, table, f"{path}: ") for name, table in document.items()}


def _profile(name: str, table: Any, where: str) -> Provider:
    if not isinstance(table, dict):
        raise ProviderError(f"{where}{name} must be in a table; allowed: one table per provider")
    where = f"{where}{name}."
    kind = table.get("kind")
    values = {}
    for key, value in table.items():
        rule = RULES.get(key)
        if rule is None or (rule.kind and kind in KINDS and rule.kind != kind):
            own = [name for name, rule in RULES.items() if not rule.kind or rule.kind == kind]
            raise ProviderError(
                f"{where}{key} is not a field of a provider of this kind; allowed: {', '.join(own)}"
            )
        values[key] = rule.read(value)
        if values[key] is None and rule.private:
            raise ProviderError(f"{where}{key} must be {rule.allowed()}")
        if values[key] is None:
            raise ProviderError(f"{where}{key} is {value!r}; allowed: {rule.allowed()}")
    for key, rule in RULES.items():
        if rule.required and key not in values and (not rule.kind or rule.kind == kind):
            raise ProviderError(f"{where}{key} is missing; allowed: {rule.allowed()}")
    if kind == "command":
        _require_usable(values, where)
        values.setdefault("retries", 0)
    return Provider(name, **values)


def _require_usable(values: Mapping[str, Any], where: str) -> None:
    """Refuses a command that holds a key, names unknown places, or never sees the prompt."""
    command = values["command"]
    flags = [part.partition("=")[0] for part in command if part.startswith("-")]
    if secret := [flag for flag in flags if names_secret(flag)]:
        raise ProviderError(
            f"{where}command must hold no key, got the argument {secret[0]}; name the environment "
            "variable that holds the key in key_env"
        )
    unknown = {name for part in command for name in _PLACE.findall(part)} - set(PLACES)
    if unknown:
        raise ProviderError(
            f"{where}command is {list(command)!r}; allowed in braces: {', '.join(PLACES)}"
        )
    if not values.get("prompt_on_stdin") and not any("{prompt_file}" in part for part in command):
        raise ProviderError(
            f"{where}command is {list(command)!r}, which is not told the prompt; allowed: one with "
            "{prompt_file}, or prompt_on_stdin = true"
        )


def filled(command: tuple[str, ...], places: Mapping[str, str]) -> list[str]:
    """A command's arguments with their places filled in."""
    return [_PLACE.sub(lambda match: places.get(match[1], match[0]), part) for part in command]


def missing(provider: Provider) -> str | None:
    """What a provider lacks on this machine before it can be asked, in words; None if nothing."""
    if provider.kind == "api" and not is_plain_url(provider.base_url):
        return f"its base_url must be {RULES['base_url'].allowed()}"
    if provider.key_env and not os.environ.get(provider.key_env):
        return f"the environment variable {provider.key_env} is not set"
    if provider.kind == "api":
        if importlib.util.find_spec("openai") is None:
            return f"the package openai is not installed; pip install '{EXTRA}'"
    elif shutil.which(provider.command[0]) is None:
        return f"the program {provider.command[0]} is not installed"
    return None


def chosen(known: Mapping[str, Provider], name: str, field: str = "provider") -> Provider:
    """The profile of a name, ready to be asked.

    Args:
      field: what the name was given as.

    Raises:
      ProviderError: if there is none, or it lacks something.
    """
    if name not in known:
        raise ProviderError(f"{field} is {name!r}; allowed: {', '.join(known)}")
    if lack := missing(known[name]):
        raise ProviderError(f"{field} is {name!r}, but {lack}")
    return known[name]


def to_json(provider: Provider) -> dict[str, Any]:
    """A profile as JSON; it holds no key, only the name of the variable that does."""
    return asdict(provider) | {"base_url": redacted(provider.base_url)}


def from_json(document: Mapping[str, Any]) -> Provider:
    """A profile from its own JSON."""
    tuples = {f.name for f in fields(Provider) if str(f.type).startswith("tuple")}
    return Provider(**{k: tuple(v) if k in tuples else v for k, v in document.items()})
