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


def apart(value: float, limit: float, digits: int = 3, style: str = "g") -> tuple[str, str]:
    """Formats a number that breaks a limit, and the limit, so that the texts compare as they do.

    Args:
      value: Differs from the limit.
      limit: Is written in full where six significant digits are enough for that.
      digits: Least number of digits; more are used where the two would look the same.
      style: 'g' for significant digits, 'f' for decimal places.

    Returns:
      Texts of the value and of the limit.
    """
    for count in range(digits, 18):
        text = f"{value:.{count}{style}}"
        bound = f"{limit:g}"
        if float(bound) != limit:
            bound = f"{limit:.{count}{style}}"
        if float(text) != float(bound) and (float(text) < float(bound)) == (value < limit):
            return text, bound
    return repr(value), repr(limit)
