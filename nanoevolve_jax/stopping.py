"""Ctrl-C and SIGTERM ask to stop: the segment is finished and saved first.

Asking again does not wait.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def graceful_stop(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether someone has asked to stop.

    Args:
      say: takes a line for the user.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may have handlers
        return
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def on_signal(number, frame):
        del number, frame
        asked.set()
        for other in _SIGNALS:
            signal.signal(other, signal.default_int_handler)
        say("stopping after this segment; ask again to stop at once")

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
