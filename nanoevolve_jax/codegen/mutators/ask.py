"""Asks a provider, once and for all: a call and its answer are files of one folder.

The call is a process of its own, which outlives whoever started it:

  python -m nanoevolve_jax.codegen.mutators.ask FOLDER

It holds `lock` while it lives, leaves `started` before it asks and `answer.json` when it has ended.
So whoever comes back to a folder knows which of four things is true: nothing was sent yet, the call
is under way, there is an answer, or the machine died in between. In the last case the call may have
been paid: it counts as that, at its worst, and is not made again.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import by_api, by_command
from nanoevolve_jax.codegen.mutators.answers import Answer, read_answer, write_answer
from nanoevolve_jax.codegen.mutators.attempts import call, cleaned
from nanoevolve_jax.codegen.mutators.budget import worst_attempt, worst_call
from nanoevolve_jax.codegen.mutators.credentials import hide_memory
from nanoevolve_jax.codegen.mutators.providers import Provider, ProviderError, missing
from nanoevolve_jax.codegen.mutators.requests import Request, read_request, write_request
from nanoevolve_jax.execution.plain_files import open_in_place

LOST = "lost: the call was under way when its machine or its process died"
_LOCK, _STARTED = "lock", "started"
_POLL_SECONDS = 0.05
_ROOT = Path(__file__).resolve().parents[3]  # where this package is imported from
_writing = threading.Lock()


class NotPermitted(CodegenError):
    """A call that was not made, because it might break a limit."""


def permit_all(provider: Provider, prompt: str) -> str | None:
    """Sets no limit to calls."""
    del provider, prompt


def ask(
    provider: Provider,
    prompt: str,
    folder: Path,
    permit: Callable[[Provider, str], str | None] = permit_all,
) -> Answer:
    """The answer to a prompt; blocks until there is one, and is safe from threads.

    A folder is one call: what was asked there first is what is answered, whatever the arguments are
    now. An answer that is there is returned, a call that is under way is waited for. Who is asked
    is up to the caller for as long as nothing was sent: a folder that somebody else has written
    must not choose which command is run, or where a key goes.

    Args:
      provider: whom to ask.
      prompt: what.
      folder: of this call alone; made if need be.
      permit: why a new call must not be made, None if it may; see `budget.permitted`. No two
        threads of a process are in it at once, and once it has agreed the call is in the books.

    Raises:
      NotPermitted: in the words of `permit`.
      ProviderError: if nothing was sent yet and the provider lacks something on this machine.
      CodegenError: if a file of the folder is damaged.
    """
    folder = Path(folder)
    request = _requested(folder, Request(provider, prompt), permit)
    process = None
    while True:
        ended = process is not None and process.poll() is not None
        if (answer := read_answer(folder)) is not None:
            return answer
        if not _under_way(folder):
            if (folder / _STARTED).exists():
                _settle(folder, lost(request))
                continue
            if process is None:
                process = _start(request.provider, folder)
            elif ended:
                failure = f"the process of the call ended with code {process.returncode}"
                _settle(folder, _unpaid(request, failure))
        time.sleep(_POLL_SECONDS)


def lost(request: Request) -> Answer:
    """The answer to a call that nobody will ever know the end of."""
    provider, prompt = request
    inputs, outputs = worst_attempt(provider, prompt)
    worst = worst_call(provider, prompt)
    return Answer(
        text="",
        input_tokens=provider.attempts * inputs,
        output_tokens=provider.attempts * outputs,
        dollars=worst.dollars,
        seconds=worst.seconds,
        requests=worst.calls,
        estimated=worst.calls,
        failure=LOST,
        provider=provider.name,
        model=provider.model,
    )


def _unpaid(request: Request, failure: str) -> Answer:
    provider = request.provider
    return Answer("", 0, 0, 0.0, 0.0, 0, 0, failure, provider.name, provider.model)


def _requested(
    folder: Path, request: Request, permit: Callable[[Provider, str], str | None]
) -> Request:
    """The request of a folder, which is made one if it has none."""
    with _writing:
        known = read_request(folder)
        if known is not None:
            sent = (folder / _STARTED).exists() or read_answer(folder) is not None
            if not sent and known.provider != request.provider:
                known = known._replace(provider=request.provider)
                write_request(folder, known)
            return known
        _require_able(request.provider)
        if reason := permit(*request):
            raise NotPermitted(reason)
        folder.mkdir(parents=True, exist_ok=True)
        write_request(folder, request)
        return request


def _require_able(provider: Provider) -> None:
    if lack := missing(provider):
        raise ProviderError(f"provider {provider.name} cannot be asked: {lack}")


def _start(provider: Provider, folder: Path) -> subprocess.Popen:
    """Starts the process of a call; of the environment it gets what its provider needs."""
    _require_able(provider)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "nanoevolve_jax.codegen.mutators.ask", str(folder.resolve())],
        cwd=folder,
        env=environment_of(provider, os.environ) | {"PYTHONPATH": str(_ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def environment_of(provider: Provider, environment: Mapping[str, str]) -> dict[str, str]:
    """What a call sees of an environment: PATH, HOME, its provider's key, and what that lists."""
    names = ("PATH", "HOME", provider.key_env, *provider.env)
    return {name: environment[name] for name in names if name in environment}


def _under_way(folder: Path) -> bool:
    """Whether a process has the call."""
    with contextlib.suppress(FileNotFoundError), open(folder / _LOCK, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _settle(folder: Path, answer: Answer) -> None:
    """Writes the answer of a call that no process has, unless one has it by now, or had it."""
    with open_in_place(folder / _LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if read_answer(folder) is None:
            write_answer(folder, answer)


def main(folder: Path) -> None:
    """The process of one call; does nothing if another had it."""
    hide_memory()
    with open_in_place(folder / _LOCK) as file:
        # Whoever looks whether a process has the call holds the lock for a moment.
        fcntl.flock(file, fcntl.LOCK_EX)
        if read_answer(folder) is not None or (folder / _STARTED).exists():
            return
        request = read_request(folder)
        environment = environment_of(request.provider, os.environ)
        _mark(folder)
        try:
            answer = _asked(request, environment)
        except BaseException as error:
            failure = f"the process of the call failed: {error!r}"
            answer = lost(request)._replace(failure=failure)
        write_answer(folder, cleaned(answer, request.provider, environment))


def _mark(folder: Path) -> None:
    """Says for ever that the call was begun; a machine that dies after this has it on its disk."""
    with open(folder / _STARTED, "xb") as file:
        os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _asked(request: Request, environment: Mapping[str, str]) -> Answer:
    provider, prompt = request
    kind = by_api if provider.kind == "api" else by_command
    return call(provider, prompt, kind.asker(provider, prompt, environment))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
