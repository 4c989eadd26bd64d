"""Keeps keys out of files, messages and core dumps.

A key must be stored in the environment variable that a profile names, and a profile that contains a
key is refused. Answers and messages are redacted as well, in case an endpoint or a command repeats
a key.
"""

import re
import resource
from collections.abc import Iterable
from urllib.parse import urlsplit

SHORTEST_SECRET = 8  # length in characters; shorter texts may be words of an answer
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


def is_plain_url(url: str) -> bool:
    """Returns whether a URL is http or https and has no part that could contain a key.

    Args:
      url: Text of the URL.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises a ValueError if the port is not a valid number
    except ValueError:
        return False
    unsafe = re.search(r"[\s@?#\\]", url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not unsafe


def names_secret(name: str) -> bool:
    """Returns whether the name of a field or flag suggests that its value is a key.

    Args:
      name: Name of a field or of a flag with its dashes.
    """
    return _NAMED.fullmatch(name.strip().lstrip("-")) is not None


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Returns a text in which the given secrets, and single lines of them, are replaced.

    Args:
      text: Text that may contain secrets.
      secrets: Secrets to replace. Secrets shorter than `SHORTEST_SECRET` are kept.
    """
    lines = {line.strip() for secret in secrets for line in (secret, *secret.splitlines())}
    for secret in sorted(lines, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return text


def redacted(text: str) -> str:
    """Returns a text in which credentials in URLs and bearer headers are replaced.

    Args:
      text: Text that may contain credentials.
    """
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    return _BEARER.sub(rf"\1{HIDDEN}", text)


def forbid_core_dumps() -> None:
    """Forbids core dumps of this process and its children, whose memory may contain keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
