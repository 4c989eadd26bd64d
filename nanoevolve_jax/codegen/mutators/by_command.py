"""One attempt of a command-line agent, in an empty folder and a process group of its own."""

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nanoevolve_jax.codegen.mutators.attempts import Attempt
from nanoevolve_jax.codegen.mutators.credentials import forbid_core_dumps
from nanoevolve_jax.codegen.mutators.providers import PLACES, Provider, filled
from nanoevolve_jax.codegen.mutators.replies import tells_of_quota
from nanoevolve_jax.codegen.mutators.usage import MOST_TOKENS, count

MAX_BYTES = 4_000_000
"""Of an output that is read."""
_PR_SET_PDEATHSIG = 1


def asker(provider: Provider, prompt: str, environment: Mapping[str, str]) -> Callable[[], Attempt]:
    """What it gives runs the command once.

    The process group of the command is killed at its time limit, and when it ends.

    Args:
      provider: of kind 'command'.
      prompt: written to {prompt_file}, and to its standard input if the profile says so.
      environment: all that the command sees of one.
    """
    return functools.partial(_attempt, provider, prompt, environment)


def _attempt(provider: Provider, prompt: str, environment: Mapping[str, str]) -> Attempt:
    with tempfile.TemporaryDirectory(prefix="nanoevolve-", ignore_cleanup_errors=True) as name:
        return _run(provider, prompt, environment, Path(name))


def _run(provider: Provider, prompt: str, environment: Mapping[str, str], private: Path) -> Attempt:
    folder = private / "work"  # output is kept out of sight of the command
    folder.mkdir()
    prompt_file, answer_file = folder / "prompt.txt", folder / "answer.txt"
    prompt_file.write_text(prompt, encoding="utf-8")
    names = map(str, (prompt_file, answer_file, folder, provider.model))
    arguments = filled(provider.command, dict(zip(PLACES, names, strict=True)))
    given = prompt_file if provider.prompt_on_stdin else Path(os.devnull)
    output, errors = private / "output", private / "errors"
    try:
        code = _wait(arguments, folder, environment, (given, output, errors), provider)
    except OSError as error:
        return Attempt(failure=f"{arguments[0]} cannot be started: {error}", paid=False)
    printed = _text(output)
    documents = list(_documents(printed)) if _reports(provider) else []
    if code is None:  # what it reported until then is less than it used
        failure = f"{arguments[0]} took longer than {provider.timeout_seconds:g} s and was killed"
        return Attempt(failure=failure, again=True)
    usage = _usage(documents, provider)
    if code:
        last = (_text(errors).strip() or printed.strip() or "no output").splitlines()[-1]
        failure = f"{arguments[0]} ended with code {code}: {last}"
        return Attempt(failure=failure, again=not tells_of_quota(last), **usage)
    text = printed
    if any("{answer_file}" in part for part in provider.command):
        text = _text(answer_file)
    elif provider.text_at:
        found = [value for path in provider.text_at for value in _found(documents, path)]
        text = "\n".join(value for value in found if isinstance(value, str))
    if not text.strip():
        return Attempt(failure=f"{arguments[0]} gave no answer", **usage)
    return Attempt(text, **usage)


def _wait(
    arguments: list[str],
    folder: Path,
    environment: Mapping[str, str],
    files: tuple[Path, Path, Path],
    provider: Provider,
) -> int | None:
    """Runs a command to its end; its exit code, or None if it had to be killed."""
    given, output, errors = files
    with open(given, "rb") as stdin, open(output, "wb") as out, open(errors, "wb") as err:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=dict(environment),
            stdin=stdin,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=_confine,
        )
    try:
        return process.wait(provider.timeout_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind as well
        process.wait()


def _confine() -> None:
    """Forbids core dumps, and asks Linux to kill this process when its parent is killed."""
    forbid_core_dumps()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _text(path: Path) -> str:
    """The beginning of a file as text; empty if it is no file of the command's own."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(handle, "rb") as file:
        return file.read(MAX_BYTES).decode(errors="replace")


def _reports(provider: Provider) -> bool:
    paths = provider.text_at, provider.input_tokens_at, provider.output_tokens_at
    return any((*paths, provider.dollars_at))


def _documents(printed: str) -> Iterator[Any]:
    """The JSON of an output: one document, or those of its lines that are JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        yield json.loads(printed)
        return
    for line in printed.split("\n"):  # other line breaks may stand inside strings
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line)


def _found(documents: Iterable[Any], path: str) -> list[Any]:
    """The values at a dotted path, `*` for any name or place."""
    nodes = list(documents)
    for name in path.split("."):
        inside = []
        for node in nodes:
            if isinstance(node, dict):
                inside += (
                    node.values() if name == "*" else [v for k, v in node.items() if k == name]
                )
            elif isinstance(node, list):
                inside += node if name == "*" else []
        nodes = inside
    return nodes


def _usage(documents: list[Any], provider: Provider) -> dict[str, Any]:
    """What a command says it used; what it cannot have used is unknown, zero among it.

    Zero dollars are the report of a command that knows no price, unless the profile has none.
    """
    dollars = _added(documents, provider.dollars_at)
    free = provider.dollars_in == provider.dollars_out == provider.dollars_call == 0
    return {
        "input_tokens": count(_added(documents, provider.input_tokens_at)),
        "output_tokens": count(_added(documents, provider.output_tokens_at)),
        "dollars": dollars if dollars or free else None,
    }


def _added(documents: Iterable[Any], paths: Iterable[str]) -> float | None:
    """The sum of the numbers at some paths; None if there are none, or one is not an amount."""
    documents = list(documents)
    found = [value for path in paths for value in _found(documents, path) if value is not None]
    if not found or not all(map(_is_amount, found)):
        return None
    return sum(found)


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= MOST_TOKENS
