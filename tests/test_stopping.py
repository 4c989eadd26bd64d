"""Signals end a process that is stuck in a library call, and no other."""

import subprocess
import sys
import time

import pytest

BLOCK = """
import ctypes, os, signal, sys, threading, time
from nanoevolve_jax import stopping

stopping.interrupt_on_signals()

def signal_twice():
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=signal_twice).start()
with stopping.exit_if_stuck(0.5, lambda: print("cleaned up", flush=True)):
    with stopping.graceful_stop(lambda line: None) as stopping:
        {work}
sys.exit(7)
"""
IN_A_LIBRARY = """
        lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(mutex), lock(mutex)  # the second call never returns, nor does a signal end it
"""
IN_PYTHON = """
        try:
            while not stopping(): time.sleep(0.05)
            time.sleep(1.0)
        except KeyboardInterrupt:
            time.sleep(1.0)
"""


@pytest.mark.parametrize(
    ("work", "code", "output"), [(IN_A_LIBRARY, 130, "cleaned up\n"), (IN_PYTHON, 7, "")]
)
def test_a_signal_ends_a_process_that_is_stuck_in_a_library_and_no_other(
    repository, work, code, output
):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.replace("{work}", work.strip())],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, output), done.stderr
    assert ("interrupted" in done.stderr) == (code == 130)
    assert time.monotonic() - began < 30
