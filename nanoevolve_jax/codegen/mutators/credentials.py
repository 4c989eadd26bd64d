"""Keeps keys out of files, messages and core dumps.

A key belongs in the environment variable that a profile names. A profile that holds one itself is
refused. What is written or printed is redacted as well, in case a key gets there on another way.
"""

import contextlib
import ctypes
import re
import resource
from collections.abc import Iterable
from urllib.parse import urlsplit

SHORTEST_SECRET = 8
"""Characters; anything shorter may well be a word of an answer."""
HIDDEN = "[secret]"

_SECRET_NAME = (
    r"[\w-]{0,30}(?:api[_-]?key|secret|password|passwd|authorization|credential)[\w-]{0,30}"
)
_NAMED = re.compile(rf"(?i){_SECRET_NAME}|(?:access|auth|bearer)[_-]?token|token|key")
_USER_INFO = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,20}://)[^\s\"'<>]{0,500}@")
_PARAMETER = re.compile(
    r"(?i)([?&#;][\w-]{0,30}(?:key|token|secret|password|auth|sig|credential)[\w-]{0,30}=)"
    r"[^&\s\"'<>)\]]+"
)
_BEARER = re.compile(r"(?i)(\bbearer\s+)[^\s\"'<>,)\]}]+")
_PR_SET_DUMPABLE = 4


def is_plain_url(url: str) -> bool:
    """Whether a URL is http or https and has no place in which a key could be."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return False
    unsafe = re.search(r"[\s@?#\\]", url)  # user, query and fragment, in whatever form
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not unsafe


def names_secret(name: str) -> bool:
    """Whether a field of a request or a flag is named like one that holds a key."""
    return _NAMED.fullmatch(name.strip().lstrip("-")) is not None


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Returns a text without the values of environment variables, or lines of such values."""
    lines = {line.strip() for secret in secrets for line in (secret, *secret.splitlines())}
    for secret in sorted(lines, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return text


def redacted(text: str) -> str:
    """Returns a text without credentials in URLs and headers."""
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    return _BEARER.sub(rf"\1{HIDDEN}", text)


def forbid_core_dumps() -> None:
    """Lets this process and its children leave no core dumps; their memory may hold keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide_memory() -> None:
    """Keeps other processes of this user from reading this one's memory, and forbids core dumps.

    Lasts until the process runs another program. Only Linux can do more than forbid core dumps.
    """
    forbid_core_dumps()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
