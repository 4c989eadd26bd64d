"""Reads the replies of OpenAI-compatible endpoints.

Limits on costs must hold, so an ambiguous report of tokens is read as the largest number that it
can mean. An implausible number is replaced by the upper bound of the call. Zero is implausible,
because neither a prompt nor an answer is empty.
"""

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any, NamedTuple

MOST_TOKENS = 10**9  # largest plausible number of tokens

_AGAIN = (408, 409, 425, 429)
_PERHAPS_PAID = (408, 502, 504, 520, 524)
"""Statuses of gateways that gave up waiting; the model may have answered, at a price."""
_CUT_OFF = {
    **dict.fromkeys(
        ("length", "max_tokens", "model_length", "model_context_window_exceeded"),
        "the reply was cut off at max_output_tokens",
    ),
    **dict.fromkeys(
        ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "sensitive"),
        "the reply was cut off by a content filter",
    ),
}
_BROKEN_OFF = ("error", "network_error", "insufficient_system_resource", "abort", "timeout")
"""Finish reasons of a model that failed before its answer was complete."""
_QUOTA = re.compile(
    r"insufficient[_ ](quota|balance|credits?|funds)|payment[_ ]required|credit[_ ]balance"
    r"|quota[_ ](was |is )?exceeded|exceeded your current quota|access_terminated|billing_"
    r"|billing (hard )?limit|check your (plan|billing)|out of credits|budget has been exceeded"
    r"|all available credits|spending limit",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"rate_?limit|too[_ ]?many[_ ]?requests|resource_?exhausted|throttl", re.IGNORECASE
)
_TRANSIENT = re.compile(
    r"overload|rate limit|too many requests|temporar|try[_ ]?again|time(d )?[_ ]?out|unavailable"
    r"|capacity|server[_ ]?error|internal[_ ]|busy",
    re.IGNORECASE,
)


class Attempt(NamedTuple):
    """Result of an attempt to get an answer from a provider."""

    text: str = ""
    input_tokens: int | None = None  # None if not reported; the upper bound then counts
    output_tokens: int | None = None  # None if not reported; the upper bound then counts
    dollars: float | None = None  # price that the provider reports, or None
    failure: str | None = None  # reason why there is no text
    paid: bool = True  # whether the attempt was or may have been billed
    again: bool = False  # whether another attempt may succeed
    wait: float | None = None  # requested pause before another attempt, in seconds


def read(body: bytes, headers: Mapping[str, str]) -> Attempt:
    """Returns the result of an attempt that ended with status 200.

    Args:
      body: Body of the reply, which may be malformed.
      headers: Headers of the reply.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        shown = " ".join(body[:200].decode(errors="replace").split())
        return Attempt(failure=f"the reply cannot be read: it is not JSON but {shown!r}")
    inputs, outputs = tokens_of(reply)
    choice = _first_choice(reply)
    error = _error(reply) or _error(choice) or _broken_off(choice)
    if error is not None:
        fault = _fault(None, error, headers)
        failure = f"the reply is an error: {fault.failure}"
        paid = fault.paid or (inputs, outputs) != (None, None)
        return fault._replace(
            failure=failure, input_tokens=inputs, output_tokens=outputs, paid=paid
        )
    text, reason = _answer(reply, choice)
    return Attempt(text, inputs, outputs, failure=reason)


def refused(status: int, body: Any, headers: Mapping[str, str]) -> Attempt:
    """Returns the result of an attempt that ended with status 4xx or 5xx.

    Args:
      status: HTTP status.
      body: Decoded body of the reply, or its field `error`.
      headers: Headers of the reply.
    """
    error = body if isinstance(body, Mapping) else {"message": str(body or "no message")}
    fault = _fault(status, _error(body) or error, headers)
    again = fault.again and headers.get("x-should-retry") != "false"
    return fault._replace(failure=f"status {status}: {fault.failure}", again=again)


def is_about_quota(text: str) -> bool:
    """Returns whether a message reports an exhausted quota or balance. Retries are then useless.

    Args:
      text: Text of the message.
    """
    return _QUOTA.search(text) is not None


def _fault(status: int | None, error: Mapping[str, Any], headers: Mapping[str, str]) -> Attempt:
    """Returns the result of an attempt that ended with an error.

    Args:
      status: HTTP status, or None if it was 200 and only the error contains a code.
      error: Object with some of `message`, `code`, `type`, `status`, `details` and `metadata`.
      headers: Headers of the reply.
    """
    message = str(error.get("message") or json.dumps(error, ensure_ascii=False))
    names = " ".join(str(error.get(name) or "") for name in ("code", "type", "status"))
    code = status if status is not None else _status(error)
    limited = _RATE.search(names) is not None
    # Messages about rate limits often mention billing.
    no_quota = code == 402 or is_about_quota(names if limited else f"{names} {message}")
    if code is not None:
        transient = code in _AGAIN or code >= 500
    else:
        transient = limited or _TRANSIENT.search(f"{names} {message}") is not None
    paid = code in _PERHAPS_PAID
    if status is None:  # the model may have generated tokens before it failed
        paid = paid or not (no_quota or limited or (code or 500) < 500)
    metadata = error.get("metadata")  # routers quote the error of the model's endpoint here
    quoted = metadata.get("raw") or "" if isinstance(metadata, Mapping) else ""
    return Attempt(
        failure=" ".join(f"{names} {message} {quoted}".split()),
        paid=paid,
        again=transient and not no_quota,
        wait=requested_wait(headers) or _retry_delay(error.get("details")),
    )


def _status(error: Mapping[str, Any]) -> int | None:
    """Returns the HTTP status that an error in a body contains, or None."""
    for name in ("code", "status", "status_code"):
        text = str(error.get(name))
        if re.fullmatch(r"[45]\d\d", text):
            return int(text)
    return None


def _error(reply: Any) -> Mapping[str, Any] | None:
    """Returns the error in a reply or a choice as an object, or None if there is none."""
    if isinstance(reply, list) and len(reply) == 1:  # Google's endpoints wrap errors in a list
        reply = reply[0]
    if not isinstance(reply, Mapping):
        return None
    error = reply.get("error")
    if isinstance(error, Mapping) and error:
        return error
    if isinstance(error, str) and error:
        return {"message": error}
    if reply.get("object") == "error":
        return reply
    if "choices" not in reply and "message" not in reply and isinstance(reply.get("detail"), str):
        return {"message": reply["detail"]}
    return None


def _broken_off(choice: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns an error if the finish reason of a choice means that its text is incomplete."""
    reason = str(choice.get("finish_reason"))
    if reason.lower() not in _BROKEN_OFF:
        return None
    return {"type": "server_error", "message": f"the reply broke off (finish_reason {reason!r})"}


def _first_choice(reply: Any) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}


def _answer(reply: Any, choice: Mapping[str, Any]) -> tuple[str, str | None]:
    """Returns (text, None) for a choice with an answer, otherwise ("", reason)."""
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    text, refusal = _joined(message.get("content"))
    reason = choice.get("finish_reason")
    refusal = refusal or message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        return "", f"the model refuses: {refusal}"
    if isinstance(reason, str) and (cut_off := _CUT_OFF.get(reason.lower())):
        return "", f"{cut_off} (finish_reason {reason!r})"
    if text.strip():
        return text, None
    if not choice:
        shown = reply.get("message") if isinstance(reply, Mapping) else None
        shown = shown if isinstance(shown, str) else "it has no choices"
        return "", f"the reply holds no text: {shown}"
    if message.get("tool_calls") or message.get("function_call"):
        return "", "the reply holds no text: it calls a tool instead of answering"
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    only = "; it holds reasoning alone" if thoughts else ""
    return "", f"the reply holds no text: finish_reason {reason!r}{only}"


def _joined(content: Any) -> tuple[str, str]:
    """Returns the text and the refusal in the content of a message.

    The content is a text or a list of parts. Parts of other types, such as reasoning and images,
    are ignored.
    """
    if isinstance(content, str):
        return content, ""
    texts: list[str] = []
    refusals: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            kind = part.get("type", "text")
            if kind in ("text", "output_text") and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif kind == "refusal":
                refusals.append(str(part.get("refusal") or part.get("text") or "no reason"))
    return "".join(texts), " ".join(refusals)


# Tokens -------------------------------------------------------------------------------------


def tokens_of(reply: Any) -> tuple[int | None, int | None]:
    """Returns the numbers of input and output tokens that a reply reports.

    Args:
      reply: Decoded JSON of the reply.

    Returns:
      Numbers of input tokens and of output tokens, each None if it is not reported.
    """
    usage = reply.get("usage") if isinstance(reply, Mapping) else None
    inputs, total = _count(usage, "prompt_tokens"), _count(usage, "total_tokens")
    written = _count(usage, "completion_tokens")
    reasoned = max(
        _count(usage, "reasoning_tokens") or 0,
        _count(usage, "completion_tokens_details.reasoning_tokens") or 0,
    )
    outputs = []
    if written is not None:
        # Reasoning tokens are assumed to be part of `written`, unless they are more than `written`
        # or there is no total to check against.
        apart = total is None or reasoned > written
        outputs.append(written + (reasoned if apart else 0))
    if total is not None and total > (inputs or 0):
        outputs.append(total - (inputs or 0))
    return inputs, max(outputs, default=None)


def token_count(value: Any) -> int | None:
    """Returns a reported number of tokens, or None if it is not a plausible positive integer.

    Args:
      value: Value of a field in the reply, of any type.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 < value <= MOST_TOKENS and value == int(value) else None


def _count(usage: Any, path: str) -> int | None:
    for name in path.split("."):
        usage = usage.get(name) if isinstance(usage, Mapping) else None
    return token_count(usage)


# Waits --------------------------------------------------------------------------------------

_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?(?:d|h|ms|m|s))+")  # for example, 6m0s or 20ms
_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def requested_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Returns the pause that the headers of a refusal request, in seconds, or None.

    `retry-after-ms` takes precedence over `Retry-After`, which contains seconds or a date. Without
    both, the pause is the time until all exhausted limits of `x-ratelimit-reset-requests` and
    `x-ratelimit-reset-tokens` are reset.

    Args:
      headers: Headers of the reply. The names must be in lower case unless the mapping ignores
        case.
      now: Current time in seconds since 1970. The default is the `Date` header of the endpoint,
        which avoids an error if the clock of this machine is wrong. Without that header, the
        default is the time of this machine.
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
        for limit in ("requests", "tokens")
        if _number(headers.get(f"x-ratelimit-remaining-{limit}")) == 0
    )
    return max(filter(None, exhausted), default=None)


def _retry_delay(details: Any) -> float | None:
    """Returns the longest `retryDelay` in the details of an error, in seconds, or None."""
    parts = details if isinstance(details, list) else []
    delays = [part.get("retryDelay") for part in parts if isinstance(part, Mapping)]
    waits = (_duration(text) for text in delays if isinstance(text, str))
    return max(filter(None, waits), default=None)


def _positive(seconds: float) -> float | None:
    return seconds if seconds > 0 else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _date(text: str | None) -> float | None:
    """Returns an HTTP date as seconds since 1970, or None if it is not a date."""
    try:
        date = email.utils.parsedate_to_datetime(text or "")
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (TypeError, ValueError, OverflowError, AttributeError, IndexError):
        return None


def _duration(text: str | None) -> float | None:
    """Returns a duration such as 6m0s, 20ms or 1.5 in seconds, or None if it is not positive."""
    if (seconds := _number(text)) is not None:
        return _positive(seconds)
    if not _DURATION.fullmatch(text := (text or "").strip()):
        return None
    parts = re.findall(r"([\d.]+)([a-z]+)", text)
    return _positive(math.fsum(float(number) * _UNITS[unit] for number, unit in parts))
