"""What the fields of a provider's profile may hold, in one table."""

from typing import Any, NamedTuple

KINDS = ("api", "command")


class Rule(NamedTuple):
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
    "key_env": Rule("text"),
    "env": Rule("texts"),
    "base_url": Rule("text", kind="api", required=True),
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
