"""What the fields of a provider's profile may hold, in one table."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nanoevolve_jax.codegen.mutators.credentials import is_plain_url, names_secret

KINDS = ("api", "command")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Rule(NamedTuple):
    """What a field of a profile may hold."""

    form: str  # 'text', 'texts', 'variable', 'variables', 'url', 'number', 'integer', 'switch',
    # 'table'
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    kind: str = ""  # the kind whose profiles alone may have it
    required: bool = False

    @property
    def private(self) -> bool:
        """Whether a wrong value may be a key, and must not be quoted."""
        return self.form in ("variable", "variables", "url", "table")

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
            "variable": "the name of an environment variable, which holds the key",
            "variables": "a list of names of environment variables",
            "url": "an http:// or https:// URL without user, password or query; name the "
            "environment variable that holds the key in key_env",
            "table": "a table without keys; name the environment variable that holds the key in "
            "key_env",
        }[self.form]

    def read(self, value: Any) -> Any:
        """The value as the profile holds it; None if it is not allowed."""
        if self.form in ("number", "integer"):
            kinds = int if self.form == "integer" else int | float
            fits = isinstance(value, kinds) and not isinstance(value, bool)
            return value if fits and self.low <= value <= self.high else None
        if self.form in ("texts", "variables"):
            texts = [value] if isinstance(value, str) else value
            fits = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            if fits and self.form == "variables":
                fits = all(map(_VARIABLE.fullmatch, texts))
            return tuple(texts) if fits and texts else None
        if self.form in ("text", "variable", "url"):
            fits = isinstance(value, str) and value
            if fits and self.form != "text":
                fits = is_plain_url(value) if self.form == "url" else _VARIABLE.fullmatch(value)
            return value if fits and (not self.choices or value in self.choices) else None
        if self.form == "table":
            fits = isinstance(value, dict) and not any(map(names_secret, _names(value)))
            return value if fits else None
        return value if isinstance(value, bool) else None


def _names(value: Any) -> Iterator[str]:
    """The names in nested tables."""
    if isinstance(value, Mapping):
        for name, inside in value.items():
            yield name
            yield from _names(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _names(inside)


RULES: dict[str, Rule] = {
    "kind": Rule("text", choices=KINDS, required=True),
    "model": Rule("text", required=True),
    "dollars_in": Rule("number", 0, 1e4, required=True),
    "dollars_out": Rule("number", 0, 1e4, required=True),
    "max_output_tokens": Rule("integer", 1, 10**6, required=True),
    "dollars_call": Rule("number", 0, 1e4),
    "overhead_tokens": Rule("integer", 0, 10**7),
    "timeout_seconds": Rule("number", 0.1, 86_400),
    "retries": Rule("integer", 0, 20),
    "backoff_seconds": Rule("number", 0, 3600),
    "backoff_max_seconds": Rule("number", 0, 3600),
    "key_env": Rule("variable"),
    "env": Rule("variables"),
    "base_url": Rule("url", kind="api", required=True),
    "temperature": Rule("number", 0, 2, kind="api"),
    "limit_field": Rule("text", choices=("max_completion_tokens", "max_tokens"), kind="api"),
    "extra_body": Rule("table", kind="api"),
    "command": Rule("texts", kind="command", required=True),
    "prompt_on_stdin": Rule("switch", kind="command"),
    "text_at": Rule("texts", kind="command"),
    "input_tokens_at": Rule("texts", kind="command"),
    "output_tokens_at": Rule("texts", kind="command"),
    "dollars_at": Rule("texts", kind="command"),
}
