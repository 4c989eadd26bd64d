"""Numbers in messages."""


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
