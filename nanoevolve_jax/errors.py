"""Mistakes of a user, which every command reports in one line with exit code 2."""

from typing import Any


class UserError(ValueError):
    """Something that a user can mend: a value, a file, a flag, or the size of a job."""


def must(name: str, rule: str, value: Any) -> str:
    """Returns the text of an error about a value.

    Args:
      name: Name of the field, flag or file, such as `config.train.steps`.
      rule: What must hold, such as `be at least 1` or `have a column 'text'`.
      value: The value that breaks the rule; shown by `repr`.

    Returns:
      One line, such as `config.train.steps must be at least 1, got -5`.
    """
    return f"{name} must {rule}, got {value!r}"
