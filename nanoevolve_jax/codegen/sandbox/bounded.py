"""A child process that cannot outstay its time, flood its parent, or leave anything running."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

_CHUNK = 65_536
_GRACE = 5.0


class Ended(NamedTuple):
    """How a process ended."""

    code: int  # of exit; 128 + n after signal n, whoever relayed it
    output: bytes  # its standard output, whole
    errors: str  # the beginning of its standard error
    cpu_seconds: float  # of it and what it waited for
    stopped: str  # why it was killed here: 'time', 'output', or '' where it ended by itself


def run(
    line: Sequence[str],
    request: bytes,
    *,
    seconds: float,
    output_bytes: int,
    error_bytes: int = 16_384,
    environment: dict[str, str],
    tell_pid: bool = False,
) -> Ended:
    """Runs a command to its end, which is never later than `seconds` from now.

    The child leads a session of its own. At the end the whole group is killed, and so is the
    process that the child has named, on whose end the kernel ends its namespace.

    Args:
      line: the command; `{info}` stands for the number of a pipe on which a launcher writes
        `{"child-pid": N}`, the process that is process 1 of a namespace.
      request: what it reads on its standard input.
      seconds: wall-clock time it has.
      output_bytes: more on its standard output, or 64 times more than is kept on its standard
        error, and it is killed.
      error_bytes: of its standard error that are kept.
      environment: all of its environment.
      tell_pid: whether the command names such a process.
    """
    deadline = time.monotonic() + seconds
    read, write = os.pipe()
    inherited = (write,) if tell_pid else ()
    try:
        child = subprocess.Popen(
            [part.replace("{info}", str(write)) for part in line],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            pass_fds=inherited,
            start_new_session=True,
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    inner = None
    try:
        inner = _named_process(read, deadline) if tell_pid else None
        streams = _Streams(child, request, output_bytes, error_bytes)
        stopped = streams.follow(deadline)
    finally:
        os.close(read)
        _kill(child.pid, inner)
        cpu_seconds = _reap(child)
        for stream in (child.stdin, child.stdout, child.stderr):
            with contextlib.suppress(OSError):  # what nobody will read
                stream.close()
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    errors = bytes(streams.errors).decode(errors="replace")
    return Ended(code, bytes(streams.output), errors, cpu_seconds, stopped)


class _Streams:
    """The three streams of a child, fed and drained together."""

    def __init__(self, child: subprocess.Popen, request: bytes, most: int, kept: int):
        self._child = child
        self._request = memoryview(request)
        self._most = most
        self._kept = kept
        self._noise = 0
        self.output = bytearray()
        self.errors = bytearray()

    def follow(self, deadline: float) -> str:
        """Feeds and drains until all are closed; gives why it stopped before, or ''."""
        child = self._child
        with selectors.DefaultSelector() as selector:
            for stream in (child.stdin, child.stdout, child.stderr):
                os.set_blocking(stream.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
            selector.register(child.stdout, selectors.EVENT_READ)
            selector.register(child.stderr, selectors.EVENT_READ)
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    return "time"
                for key, _ in selector.select(left):
                    stream = key.fileobj
                    over = self._feed() if stream is child.stdin else self._drain(stream)
                    if over:
                        selector.unregister(stream)
                        stream.close()
                if len(self.output) > self._most or self._noise > 64 * self._kept:
                    return "output"
        with contextlib.suppress(subprocess.TimeoutExpired):
            _await_exit(child.pid, deadline)
            return ""
        return "time"

    def _feed(self) -> bool:
        try:
            self._request = self._request[os.write(self._child.stdin.fileno(), self._request) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return not self._request

    def _drain(self, stream) -> bool:
        try:
            content = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            return False
        if stream is self._child.stdout:
            self.output += content
        else:
            self._noise += len(content)
            self.errors += content[: self._kept - len(self.errors)]
        return not content


def _named_process(read: int, deadline: float) -> int | None:
    """A descriptor of the process that a launcher names; None if it has none to name."""
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(read, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            chunk = os.read(read, 4096)
            text += chunk
            with contextlib.suppress(ValueError, KeyError, ProcessLookupError):
                return os.pidfd_open(json.loads(text)["child-pid"])
            if not chunk or len(text) > 65_536:
                break
    return None


def _await_exit(pid: int, deadline: float) -> None:
    """Waits for a child to end, without reaping it."""
    descriptor = os.pidfd_open(pid)
    try:
        _await_descriptor(descriptor, deadline)
    finally:
        os.close(descriptor)


def _await_descriptor(descriptor: int, deadline: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        left = max(0.0, deadline - time.monotonic())
        if not selector.select(left):
            raise subprocess.TimeoutExpired("child", left)


def _kill(pid: int, inner: int | None) -> None:
    """Kills a session's group, and a namespace by its process 1; waits until that is gone."""
    if inner is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(inner, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _await_descriptor(inner, time.monotonic() + _GRACE)
        os.close(inner)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _reap(child: subprocess.Popen) -> float:
    """Collects a child that has ended; gives the CPU seconds it and its children took."""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime
