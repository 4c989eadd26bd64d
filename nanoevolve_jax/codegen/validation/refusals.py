"""Refusals of code: their reasons and messages."""

import re
from typing import NamedTuple

LONGEST_MESSAGE = 500  # length of a message in characters

REASONS = {
    # Reasons that concern the text, before anything runs.
    "syntax": "The source is outside the grammar of the language.",
    "name": "It uses a name that is not allowed, or does not define the function of its slot.",
    "attribute": "It uses an attribute that is not allowed.",
    "import": "It imports something; all that may be used is there already.",
    "too_long": "It is too long, too deep or has too many operations.",
    # Reasons that concern tracing.
    "trace": "It fails while it is traced.",
    "endless": "Its tracing does not end in time.",
    # Reasons that concern the computation.
    "effect": "It does more than compute its results from its arguments.",
    "callback": "It calls back into Python, prints, or moves data to the host.",
    "custom_call": "It needs an operation other than plain arithmetic on arrays.",
    "unbounded_loop": "The number of steps of a loop is not known while it is traced.",
    "constant": "Its constants are too large.",
    "shape": "A result does not have the shape of its contract.",
    "dtype": "A result does not have the dtype of its contract.",
    "cost": "It costs too much more arithmetic or memory traffic than the built-in function.",
    "memory": "It needs too much more memory than the built-in function.",
    # Reasons that concern the results of a run.
    "non_finite": "A result is not finite where that of the built-in function is.",
    "nondeterministic": "It returns different results for the same arguments.",
    # Reasons that the process outside the sandbox determines.
    "timeout": "The sandbox did not end in time.",
    "killed": "The sandbox was killed or crashed.",
    "output": "The sandbox returned something other than a valid result.",
    "link": "The sandbox returned something other than plain files (in older folders).",
    "certificate": "The certificate does not fit what it certifies.",
    "isolation": "This machine lacks a required wall of the sandbox.",
    "inert": "It computes the same as the function that it was to replace.",
}
"""Meaning of each reason."""

_PATH = re.compile(r"(?<![\w./])(?:/[\w.@+~-]+){2,}/?")
_ADDRESS = re.compile(r"( (object )?at )?\b0x[0-9a-fA-F]+\b")


class Refusal(NamedTuple):
    """Reason and message of a refusal."""

    reason: str  # one of `REASONS`
    message: str  # text that `one_line` returned


class Refused(Exception):
    """Error raised if a source is refused."""

    def __init__(self, reason: str, message: object):
        self.refusal = Refusal(reason, one_line(message))
        super().__init__(self.refusal.message)


def first_line(error: BaseException) -> str:
    """Returns the type of an exception and the first line of its message.

    Args:
      error: Exception to describe.
    """
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def one_line(text: object) -> str:
    """Returns a message in a form that can be stored and shown.

    The result is a single line of at most `LONGEST_MESSAGE` printable characters. Paths and memory
    addresses are removed, because they differ between machines and runs.

    Args:
      text: Object whose `str` is the message.
    """
    line = _ADDRESS.sub("", " ".join(_PATH.sub("<path>", str(text)).split()))
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 3] + "..."
