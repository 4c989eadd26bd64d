"""Ctrl-C and SIGTERM: the segment is finished and saved first; asking again does not wait.

Outside of `graceful_stop` both raise KeyboardInterrupt, so every block is left in order.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_on_sigterm() -> None:
    """Makes SIGTERM raise KeyboardInterrupt from now on, unless the process ignores it."""
    if _is_main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def handle(handler: Any) -> None:
    """Handles both signals with `handler` from now on; only the main thread may set handlers."""
    if _is_main_thread():
        for number in SIGNALS:
            signal.signal(number, handler)


@contextlib.contextmanager
def unchanged_handlers() -> Iterator[None]:
    """Restores the handlers of both signals after the block."""
    if not _is_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def graceful_stop(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal has asked to stop.

    Args:
      say: Prints a line for the user.
    """
    asked = threading.Event()

    def on_signal(number, frame):
        del number, frame
        asked.set()
        handle(signal.default_int_handler)
        say("stopping after this segment; ask again to stop at once")

    with unchanged_handlers():
        handle(on_signal)
        yield asked.is_set


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
