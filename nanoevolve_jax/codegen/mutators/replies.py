"""From the reply of an endpoint to the end of an attempt: an answer, or why there is none."""

import json
import re
from collections.abc import Mapping
from typing import Any

from nanoevolve_jax.codegen.mutators import usage
from nanoevolve_jax.codegen.mutators.attempts import Attempt
from nanoevolve_jax.codegen.mutators.events import decoded
from nanoevolve_jax.codegen.mutators.patience import asked_wait, told_wait

_AGAIN = (408, 409, 425, 429)
_PERHAPS_PAID = (408, 502, 504, 520, 524)
"""Gateways that gave up waiting; the model behind them may have answered, at a price."""
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
"""Reasons for the end of a reply whose model failed before its answer was whole."""
_QUOTA = re.compile(
    r"insufficient_(quota|balance|credits?|funds)|billing|quota_exceeded|payment_required"
    r"|access_terminated|credit_balance",
    re.IGNORECASE,
)
_QUOTA_WORDS = re.compile(
    r"exceeded your current quota|quota (was |is )?exceeded|credit balance"
    r"|insufficient (quota|balance|credits?|funds)|billing (hard )?limit"
    r"|check your (plan|billing)|payment required|out of credits|budget has been exceeded"
    r"|all available credits|spending limit",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"rate_?limit|too[_ ]?many[_ ]?requests|resource_?exhausted|throttl", re.IGNORECASE
)
_TRANSIENT = re.compile(
    r"overload|server_?error|internal|time_?out|unavailable|capacity|busy|try_?again", re.IGNORECASE
)
_TRANSIENT_WORDS = re.compile(
    r"overloaded|rate limit|too many requests|temporar|try again|timed? ?out|unavailable"
    r"|at capacity|server error",
    re.IGNORECASE,
)


def read(body: bytes, headers: Mapping[str, str]) -> Attempt:
    """Returns the attempt that ended with status 200; nothing in its body is certain."""
    try:
        reply = decoded(body)
    except (ValueError, RecursionError):
        shown = " ".join(body[:200].decode(errors="replace").split())
        return Attempt(failure=f"the reply cannot be read: it is not JSON but {shown!r}")
    inputs, outputs = usage.tokens(reply)
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
    """Returns the attempt that ended with a status of 4xx or 5xx.

    Args:
      status: HTTP status.
      body: Decoded body, or what it holds as `error`.
      headers: Headers of the reply.
    """
    error = body if isinstance(body, Mapping) else {"message": str(body or "no message")}
    fault = _fault(status, _error(body) or error, headers)
    again = fault.again and headers.get("x-should-retry") != "false"
    return fault._replace(failure=f"status {status}: {fault.failure}", again=again)


def tells_of_quota(text: str) -> bool:
    """Whether a message says that a quota or a balance is exhausted, so that no retry helps."""
    return (_QUOTA.search(text) or _QUOTA_WORDS.search(text)) is not None


def _fault(status: int | None, error: Mapping[str, Any], headers: Mapping[str, str]) -> Attempt:
    """The attempt that ended with an error: whether it was paid, and whether to try again.

    Args:
      status: HTTP status. None: it was 200, and the error's own code is all there is.
      error: Object with some of `message`, `code`, `type`, `status`, `details` and `metadata`.
      headers: Headers of the reply.
    """
    message = str(error.get("message") or json.dumps(error, ensure_ascii=False))
    names = " ".join(str(error.get(name) or "") for name in ("code", "type", "status"))
    code = status if status is not None else _status(error)
    no_quota = code == 402 or _QUOTA.search(names) is not None
    limited = _RATE.search(names) is not None
    if not limited:  # messages about rates advertise higher limits
        no_quota = no_quota or _QUOTA_WORDS.search(message) is not None
    if code is not None:
        passes = code in _AGAIN or code >= 500
    else:
        clue = _TRANSIENT.search(names) or _TRANSIENT_WORDS.search(message)
        passes = limited or clue is not None
    paid = code in _PERHAPS_PAID
    if status is None:  # a model may have begun to write before it failed
        paid = paid or not (no_quota or limited or (code or 500) < 500)
    metadata = error.get("metadata")  # of a router, which quotes the model's own endpoint there
    quoted = metadata.get("raw") or "" if isinstance(metadata, Mapping) else ""
    shown = " ".join(f"{names} {message} {quoted}".split())
    return Attempt(
        failure=shown,
        paid=paid,
        again=passes and not no_quota,
        wait=asked_wait(headers) or told_wait(error.get("details")),
    )


def _status(error: Mapping[str, Any]) -> int | None:
    """The HTTP status that an error in a body names."""
    for name in ("code", "status", "status_code"):
        text = str(error.get(name))
        if re.fullmatch(r"[45]\d\d", text):
            return int(text)
    return None


def _error(reply: Any) -> Mapping[str, Any] | None:
    """The error in a reply or in a choice, as an object; None if there is none."""
    if isinstance(reply, list) and len(reply) == 1:  # as Google's endpoints wrap it
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
    """The error of a choice that ends as one although it holds none; a part of a text may stand."""
    reason = str(choice.get("finish_reason"))
    if reason.lower() not in _BROKEN_OFF:
        return None
    return {"type": "server_error", "message": f"the reply broke off (finish_reason {reason!r})"}


def _first_choice(reply: Any) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}


def _answer(reply: Any, choice: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text of a choice, and why it is not an answer; None if it is one."""
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
        said = reply.get("message") if isinstance(reply, Mapping) else None
        return "", f"the reply holds no text: {said if isinstance(said, str) else 'no choices'}"
    if message.get("tool_calls") or message.get("function_call"):
        return "", "the reply holds no text: it calls a tool instead of answering"
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    only = "; it holds reasoning alone" if thoughts else ""
    return "", f"the reply holds no text: finish_reason {reason!r}{only}"


def _joined(content: Any) -> tuple[str, str]:
    """The text and the refusal in the content of a message, which is text or a list of parts.

    Parts of other types, such as reasoning and images, are left out.
    """
    if isinstance(content, str):
        return content, ""
    parts = content if isinstance(content, list) else [content]
    texts: list[str] = []
    refusals: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            kind = part.get("type", "text")
            if kind in ("text", "output_text") and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif kind == "refusal":
                refusals.append(str(part.get("refusal") or part.get("text") or "no reason"))
    return "".join(texts), " ".join(refusals)
