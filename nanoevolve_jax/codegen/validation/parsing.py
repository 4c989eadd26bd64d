"""Syntax trees in a process of many threads.

CPython 3.11 counts the depth of a tree under construction in one counter for all threads, and calls
it an error where another thread has moved it meanwhile (github.com/python/cpython/issues/106905).
"""

import ast
import threading

_LOCK = threading.Lock()
_TRIES = 20  # code that is not ours builds trees without this lock


def parse(text: str) -> ast.Module:
    """The tree of a text; raises what `ast.parse` does."""
    with _LOCK:
        for _ in range(_TRIES - 1):
            try:
                return ast.parse(text)
            except SystemError:
                continue
        return ast.parse(text)
