"""Why code is refused: the one table of reasons, and what a refusal looks like."""

import re
from typing import NamedTuple

LONGEST_MESSAGE = 500  # characters

REASONS = {
    # Found in the text, before anything runs.
    "syntax": "The source is not in the small language that functions are written in.",
    "name": "It uses a name that is not allowed, or does not define what its slot asks for.",
    "attribute": "It uses an attribute that is not allowed.",
    "import": "It imports something; what may be used is there already.",
    "too_long": "It is too long, too deep or has too many operations.",
    # Found while it is traced to a computation.
    "trace": "It fails while it is traced.",
    "endless": "Its tracing does not end in time.",
    # Found in the computation.
    "effect": "It does more than compute its results from its arguments.",
    "callback": "It calls back into Python, prints, or moves data to the host.",
    "custom_call": "It needs an operation that is no plain arithmetic on arrays.",
    "unbounded_loop": "It has a loop whose number of steps is not known while it is traced.",
    "constant": "It carries constants that are too large.",
    "shape": "A result has not the shape of its contract.",
    "dtype": "A result has not the dtype of its contract.",
    "cost": "It costs too much more arithmetic or memory traffic than the built-in function.",
    "memory": "It needs too much more memory than the built-in function.",
    # Found by running it.
    "non_finite": "A result is not finite where that of the built-in function is.",
    "nondeterministic": "It gives different results from the same arguments.",
    # Found by the process that started the child.
    "timeout": "The child did not end in time.",
    "killed": "The child was killed or crashed.",
    "output": "What the child wrote is not what was agreed on.",
    "link": "What the child wrote contains a link or something else that is no plain file.",
    "certificate": "The certificate does not fit what it certifies.",
    "isolation": "The child cannot be isolated on this machine as asked.",
    "inert": "It computes the same as the function it was to replace.",
}
"""A sentence for each reason."""

_PATH = re.compile(r"(?<![\w./])(?:/[\w.@+~-]+){2,}/?")

_ADDRESS = re.compile(r"( (object )?at )?\b0x[0-9a-fA-F]+\b")


def one_line(text: object) -> str:
    """Returns a message as it may be kept and shown.

    It is one line of at most 500 characters, without paths and without memory addresses, which
    differ from run to run.
    """
    line = " ".join(_PATH.sub("<path>", str(text)).split())
    line = _ADDRESS.sub("", line)
    line = "".join(character if character.isprintable() else "?" for character in line)
    if len(line) <= LONGEST_MESSAGE:
        return line
    return line[: LONGEST_MESSAGE - 3] + "..."


class Refusal(NamedTuple):
    """Why a source is refused; `reason` is one of `REASONS`."""

    reason: str
    message: str


class Refused(Exception):
    """Raised where a source is refused."""

    def __init__(self, reason: str, message: object):
        self.refusal = Refusal(reason, one_line(message))
        super().__init__(self.refusal.message)
