"""How long an endpoint asks its callers to wait before they come back."""

import email.utils
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any

_DURATION = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?"
    r"(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)
_UNITS = (86_400.0, 3600.0, 60.0, 1.0, 0.001)
_LIMITS = ("requests", "tokens")


def asked_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Returns the seconds that the headers of a refusal ask for.

    `retry-after-ms` goes before `Retry-After`, which holds seconds or a date. Without both, it is
    the time until the last exhausted limit of `x-ratelimit-reset-requests` and `-tokens` is reset.

    Args:
      headers: Headers of the reply; names in lower case, or a mapping that ignores case.
      now: Seconds since 1970. By default the endpoint's own `Date`, so that a clock that is wrong
        does not matter, and without one the time of this machine.

    Returns:
      A positive number, perhaps infinite. None: they ask for nothing that can be understood.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return _positive(milliseconds / 1000.0)
    asked = headers.get("retry-after")
    if (seconds := _number(asked)) is not None:
        return _positive(seconds)
    if (date := _date(asked)) is not None:
        if now is None:
            now = _date(headers.get("date")) or time.time()
        return _positive(date - now)
    exhausted = (
        _duration(headers.get(f"x-ratelimit-reset-{limit}"))
        for limit in _LIMITS
        if _number(headers.get(f"x-ratelimit-remaining-{limit}")) == 0
    )
    return max(filter(None, exhausted), default=None)


def told_wait(details: Any) -> float | None:
    """Returns the longest `retryDelay` in the details of an error, in seconds, if there is any."""
    found = details if isinstance(details, list) else []
    told = [detail.get("retryDelay") for detail in found if isinstance(detail, Mapping)]
    waits = (_duration(text) for text in told if isinstance(text, str))
    return max(filter(None, waits), default=None)


def _positive(seconds: float) -> float | None:
    return seconds if seconds > 0 else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _date(text: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date."""
    try:
        date = email.utils.parsedate_to_datetime(text)
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (TypeError, ValueError, OverflowError, AttributeError, IndexError):
        return None


def _duration(text: str | None) -> float | None:
    """Seconds of a duration such as 6m0s, 20ms or 1.5."""
    if (seconds := _number(text)) is not None:
        return _positive(seconds)
    match = _DURATION.fullmatch((text or "").strip())
    if match is None:
        return None
    parts = zip(match.groups(), _UNITS, strict=True)
    return _positive(math.fsum(float(part) * unit for part, unit in parts if part))
