"""How commands that only look print: a text at once, quietly where nobody reads any more."""

import os
import sys


def write(text: str) -> None:
    """Writes to standard output; a reader that has gone, such as `head`, is no mistake."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
