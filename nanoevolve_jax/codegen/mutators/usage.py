"""How many tokens a reply says it used, under the names of several APIs.

Limits must hold, so the most that a report can mean counts. What no report can mean is unknown, and
an unknown number counts as the most that a call may use. That includes zero, because neither a
prompt nor an answer is empty.
"""

from collections.abc import Mapping
from typing import Any

MOST_TOKENS = 10**9
"""No call uses more; a larger number is a mistake."""

_USAGES = ("usage", "usageMetadata", "usage_metadata")
_INPUT = ("prompt_tokens", "input_tokens", "promptTokenCount", "prompt_token_count")
_CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")  # beside `input_tokens`
_OUTPUT = ("completion_tokens", "output_tokens", "candidatesTokenCount", "candidates_token_count")
_THOUGHTS = ("thoughtsTokenCount", "thoughts_token_count")  # beside the candidates' tokens
_REASONING = (
    "reasoning_tokens",
    "completion_tokens_details.reasoning_tokens",
    "output_tokens_details.reasoning_tokens",
)
_TOTAL = ("total_tokens", "totalTokenCount", "total_token_count")


def tokens(reply: Any) -> tuple[int | None, int | None]:
    """Returns the tokens of input and of output that a reply reports.

    Args:
      reply: Decoded JSON of a reply.

    Returns:
      Two counts. None: the reply does not report this count, or not credibly.
    """
    usages = [reply[name] for name in _USAGES if isinstance(reply, Mapping) and reply.get(name)]
    usage = usages[0] if usages else {}
    return _input(usage), _output(usage)


def count(value: Any) -> int | None:
    """Returns a reported number of tokens; None if it is not positive, whole and possible."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 < value <= MOST_TOKENS and value == int(value) else None


def _input(usage: Any) -> int | None:
    apart = _at(usage, "input_tokens")
    if apart is not None:
        apart += sum(_at(usage, name) or 0 for name in _CACHED)
    return max(filter(None, (apart, _most(usage, _INPUT))), default=None)


def _output(usage: Any) -> int | None:
    inputs, total = _most(usage, _INPUT), _most(usage, _TOTAL)
    written, thought = _most(usage, _OUTPUT), _most(usage, _THOUGHTS)
    reasoned = _most(usage, _REASONING) or 0
    known = []
    if written is not None:
        # Reasoning is a part of what was written, unless it is longer or no total tells.
        outside = total is None or reasoned > written
        known.append(written + (thought or 0) + (reasoned if outside else 0))
    if total is not None and total > (inputs or 0):
        known.append(total - (inputs or 0))
    return max(known, default=None)


def _most(usage: Any, paths: tuple[str, ...]) -> int | None:
    """The largest credible number at some dotted paths."""
    return max(filter(None, (_at(usage, path) for path in paths)), default=None)


def _at(usage: Any, path: str) -> int | None:
    for name in path.split("."):
        usage = usage.get(name) if isinstance(usage, Mapping) else None
    return count(usage)
