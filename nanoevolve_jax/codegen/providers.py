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
from typing import Any, NamedTuple

from configs.lookup import locate
from nanoevolve_jax.codegen.errors import CodegenError

FILE = "configs/providers.toml"
EXTRA = "nanoevolve-jax[codegen]"
KINDS = ("api", "command")
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


class _Rule(NamedTuple):
    """What a field of a profile may hold."""

    form: str  # 'text', 'texts', 'number', 'integer', 'switch', 'table'
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    kind: str = ""  # the kind whose profiles alone may have it
    required: bool = False

    def allowed(self) -> str:
        """In words."""
        if self.choices:
            return " or ".join(self.choices)
        return {
            "text": "text that is not empty",
            "texts": "a list of texts",
            "number": f"a number from {self.low:g} to {self.high:g}",
            "integer": f"an integer from {self.low:g} to {self.high:g}",
            "switch": "true or false",
            "table": "a table",
        }[self.form]

    def read(self, value: Any) -> Any:
        """The value as the profile holds it; None if it is not allowed."""
        if self.form in ("number", "integer"):
            kinds = int if self.form == "integer" else int | float
            fits = isinstance(value, kinds) and not isinstance(value, bool)
            return value if fits and self.low <= value <= self.high else None
        if self.form == "texts":
            texts = [value] if isinstance(value, str) else value
            fits = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            return tuple(texts) if fits and texts else None
        if self.form == "text":
            fits = isinstance(value, str) and value
            return value if fits and (not self.choices or value in self.choices) else None
        return value if isinstance(value, bool if self.form == "switch" else dict) else None


_RULES: dict[str, _Rule] = {
    "kind": _Rule("text", choices=KINDS, required=True),
    "model": _Rule("text", required=True),
    "dollars_in": _Rule("number", 0, 1e4, required=True),
    "dollars_out": _Rule("number", 0, 1e4, required=True),
    "max_output_tokens": _Rule("integer", 1, 10**6, required=True),
    "dollars_call": _Rule("number", 0, 1e4),
    "overhead_tokens": _Rule("integer", 0, 10**7),
    "timeout_seconds": _Rule("number", 0.1, 86_400),
    "retries": _Rule("integer", 0, 20),
    "backoff_seconds": _Rule("number", 0, 3600),
    "backoff_max_seconds": _Rule("number", 0, 3600),
    "key_env": _Rule("text"),
    "env": _Rule("texts"),
    "base_url": _Rule("text", kind="api", required=True),
    "temperature": _Rule("number", 0, 2, kind="api"),
    "limit_field": _Rule("text", choices=("max_completion_tokens", "max_tokens"), kind="api"),
    "extra_body": _Rule("table", kind="api"),
    "command": _Rule("texts", kind="command", required=True),
    "prompt_on_stdin": _Rule("switch", kind="command"),
    "text_at": _Rule("texts", kind="command"),
    "input_tokens_at": _Rule("texts", kind="command"),
    "output_tokens_at": _Rule("texts", kind="command"),
    "dollars_at": _Rule("texts", kind="command"),
}


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
        raise ProviderError(f"{where}{name} is {table!r}; allowed: a table, a provider each")
    where = f"{where}{name}."
    kind = table.get("kind")
    values = {}
    for key, value in table.items():
        rule = _RULES.get(key)
        if rule is None or (rule.kind and kind in KINDS and rule.kind != kind):
            own = [name for name, rule in _RULES.items() if not rule.kind or rule.kind == kind]
            raise ProviderError(
                f"{where}{key} is {value!r}, but there is no such field; allowed: {', '.join(own)}"
            )
        values[key] = rule.read(value)
        if values[key] is None:
            raise ProviderError(f"{where}{key} is {value!r}; allowed: {rule.allowed()}")
    for key, rule in _RULES.items():
        if rule.required and key not in values and (not rule.kind or rule.kind == kind):
            raise ProviderError(f"{where}{key} is missing; allowed: {rule.allowed()}")
    if kind == "command":
        _require_usable(values, where)
        values.setdefault("retries", 0)
    return Provider(name, **values)


def _require_usable(values: Mapping[str, Any], where: str) -> None:
    """Refuses a command that names unknown places, or that never sees the prompt."""
    command = values["command"]
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
    return asdict(provider)


def from_json(document: Mapping[str, Any]) -> Provider:
    """A profile from its own JSON."""
    tuples = {f.name for f in fields(Provider) if str(f.type).startswith("tuple")}
    return Provider(**{k: tuple(v) if k in tuples else v for k, v in document.items()})
