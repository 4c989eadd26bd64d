"""Handling of Ctrl-C and SIGTERM.

Within `graceful_stop`, the first signal lets the current segment finish and be saved, and the
second one stops at once. Elsewhere both signals raise KeyboardInterrupt, so that context managers
clean up. Python runs a signal handler only after a call into a library returns, and `exit_if_stuck`
limits that wait.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # exit code of an interrupted command
_handled = threading.Event()  # set when a handler has run


def interrupt_on_signals() -> None:
    """Makes each signal raise KeyboardInterrupt, unless it is ignored or has a custom handler."""
    if _is_main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _interrupt)


def handle(handler: Any) -> None:
    """Sets the handler of both signals, or does nothing outside the main thread.

    Args:
      handler: Handler, as for `signal.signal`.
    """
    if _is_main_thread():
        for number in SIGNALS:
            signal.signal(number, handler)


@contextlib.contextmanager
def unchanged_handlers() -> Iterator[None]:
    """Restores the current handlers of both signals after the block."""
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
def graceful_stop(log: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal has arrived.

    Args:
      log: Callback that takes one line for the user.
    """
    requested = threading.Event()

    def on_signal(number, frame):
        del number, frame
        _handled.set()
        requested.set()
        handle(_interrupt)
        log("stopping after this segment; repeat to stop at once")

    with unchanged_handlers():
        handle(on_signal)
        yield requested.is_set


@contextlib.contextmanager
def exit_if_stuck(seconds: float, clean_up: Callable[[], None]) -> Iterator[None]:
    """Ends the process if a library call in the block delays a signal handler for too long.

    Args:
      seconds: Longest allowed time in seconds from a signal to the call of its handler.
      clean_up: Function to call, in another thread, before the process ends.
    """
    if not _is_main_thread():
        yield
        return
    (reader, writer), left = os.pipe(), threading.Event()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _handled.clear()
    threading.Thread(target=_watch, args=(reader, left, seconds, clean_up), daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writer)


def _watch(
    reader: int, left: threading.Event, seconds: float, clean_up: Callable[[], None]
) -> None:
    """Waits for signals, each of which writes one byte, and for their handlers."""
    while select.select([reader], [], []) and not left.is_set():
        if not _handled.wait(seconds) and not left.is_set():
            try:
                clean_up()
                os.write(2, b"interrupted; the same command resumes from what is saved\n")
            finally:
                os._exit(INTERRUPTED)
        _handled.clear()
        os.read(reader, 64)  # after `clear`, because quick signals may share one handler call
    os.close(reader)


def _interrupt(number: int, frame: Any) -> None:
    del number, frame
    _handled.set()
    raise KeyboardInterrupt


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
