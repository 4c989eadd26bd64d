"""Standard streams: outside text is escaped, and a reader that leaves does not end a run.

Only Python's own library is imported, because `nanoevolve --help` must answer at once.
"""

import errno
import io
import logging
import os
import re
import select
import sys

from nanoevolve_jax.escaping import visible, visible_lines

_STDIN, _STDOUT, _STDERR = range(3)
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


class SafeStream(io.TextIOWrapper):
    """A standard stream that drops colours and escapes control characters.

    Errors of writing are kept in `error` and raise nothing, except for a pipe without a reader on
    a strict stream.
    """

    def __init__(self, number: int, encoding: str, strict: bool = False):
        """Opens a descriptor, which is not closed with the stream.

        Args:
          number: File descriptor, 1 or 2.
          encoding: Encoding of the stream; characters that it lacks are escaped.
          strict: Whether a pipe without a reader raises BrokenPipeError.
        """
        self._descriptor = _Descriptor(number, strict)
        # Without a buffer, so that a signal handler may print while a write waits.
        super().__init__(
            self._descriptor,
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=number == _STDERR or self._descriptor.isatty(),
            write_through=True,
        )

    @property
    def error(self) -> OSError | None:
        """The first error of writing, if there was any."""
        return self._descriptor.error

    def relax(self) -> None:
        """Lets no later error raise, so that the interpreter can flush the stream at its end."""
        self._descriptor.strict = False

    def write(self, text: str) -> int:
        """Writes outside text."""
        self.write_styled(visible_lines(_COLOUR.sub("", text)))
        return len(text)

    def write_styled(self, text: str) -> int:
        """Writes text with escape sequences of our own; only a console calls this."""
        return super().write(text)


class _Descriptor(io.FileIO):
    """A file descriptor that loses what cannot be written to it."""

    def __init__(self, number: int, strict: bool):
        super().__init__(number, "wb", closefd=False)
        self.strict = strict
        self.error: OSError | None = None

    def write(self, content) -> int:
        rest = memoryview(content)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # the descriptor does not block, and is full
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as error:
            self.error = self.error or error
            if self.strict and error.errno == errno.EPIPE:
                raise
        return len(content)


def guard(*, strict: bool = False) -> None:
    """Opens closed standard descriptors and replaces the standard streams by safe ones.

    A stream that was replaced already, by a test or by an earlier call, stays as it is.

    Args:
      strict: Whether writing to a pipe without a reader raises BrokenPipeError.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__ or (strict and isinstance(sys.stdout, SafeStream)):
        sys.stdout = _guarded(sys.stdout, _STDOUT, strict)
    if sys.stderr is sys.__stderr__:
        before, sys.stderr = sys.stderr, _guarded(sys.stderr, _STDERR, strict=False)
        _move_logs(before)


def _guarded(stream: io.TextIOWrapper | None, number: int, strict: bool) -> SafeStream:
    if stream is not None:
        stream.flush()
    return SafeStream(number, getattr(stream, "encoding", None) or "utf-8", strict)


def _move_logs(before: io.TextIOBase | None) -> None:
    """Lets logs that went to the standard error before go to the present one."""
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(sys.stderr)


def print_line(line: object) -> None:
    """Writes one line to the standard output."""
    _write(sys.stdout, f"{visible(line)}\n")


def write(text: str) -> None:
    """Writes text of several lines to the standard output."""
    _write(sys.stdout, visible_lines(text))


def print_error(line: object) -> None:
    """Writes one line to the standard error."""
    _write(sys.stderr, f"{visible(line)}\n")


def _write(stream: io.TextIOBase | None, text: str) -> None:
    if stream is not None:
        stream.write(text)
        stream.flush()
