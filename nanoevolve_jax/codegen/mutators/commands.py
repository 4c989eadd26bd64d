"""One attempt with a command-line agent, in an empty folder and a process group of its own."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nanoevolve_jax.codegen.mutators.providers import PLACES, Command, filled
from nanoevolve_jax.codegen.mutators.replies import (
    MOST_TOKENS,
    Attempt,
    is_about_quota,
    token_count,
)

MAX_BYTES = 4_000_000  # bytes of an output that are read

# Becomes the command. On Linux it is killed with its parent, and it leaves no core dump.
_LAUNCHER = """\
import ctypes, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


async def attempt(provider: Command, prompt: str, environment: Mapping[str, str]) -> Attempt:
    """Runs a command once; raises nothing.

    Its process group is killed at the time limit, and when the command ends.

    Args:
      provider: Profile of the command.
      prompt: Text of `{prompt_file}`, and of standard input if the profile asks for that.
      environment: All environment variables of the command.
    """
    with tempfile.TemporaryDirectory(prefix="nanoevolve-", ignore_cleanup_errors=True) as name:
        private = Path(name)
        folder = private / "work"  # the command does not see the files of its output
        folder.mkdir()
        files = {"prompt_file": folder / "prompt.txt", "answer_file": folder / "answer.txt"}
        files["prompt_file"].write_text(prompt, encoding="utf-8")
        places = files | {"folder": folder, "model": provider.model}
        arguments = filled(provider.command, {key: str(places[key]) for key in PLACES})
        code = await _run(provider, arguments, private, files["prompt_file"], environment)
        if code is None:  # tokens that it has reported so far are fewer than it used
            limit = f"{provider.timeout_seconds:g} s"
            failure = f"{arguments[0]} took longer than {limit} and was killed"
            return Attempt(failure=failure, again=True)
        printed, errors = _text(private / "output"), _text(private / "errors")
        documents = list(_documents(printed))
        usage = _usage(documents, provider)
        if code:
            last = (errors.strip() or printed.strip() or "no output").splitlines()[-1]
            failure = f"{arguments[0]} ended with code {code}: {last}"
            return Attempt(failure=failure, again=not is_about_quota(last), **usage)
        text = printed
        if any("{answer_file}" in part for part in provider.command):
            text = _text(files["answer_file"])
        elif provider.text_at:
            values = [value for path in provider.text_at for value in _values(documents, path)]
            text = "\n".join(value for value in values if isinstance(value, str))
        if not text.strip():
            return Attempt(failure=f"{arguments[0]} returned no answer", **usage)
        return Attempt(text, **usage)


async def _run(
    provider: Command,
    arguments: list[str],
    private: Path,
    prompt_file: Path,
    environment: Mapping[str, str],
) -> int | None:
    """Runs a command to its end; returns its exit code, or None if it had to be killed."""
    given = prompt_file if provider.prompt_on_stdin else Path(os.devnull)
    with (
        open(given, "rb") as stdin,
        open(private / "output", "wb") as output,
        open(private / "errors", "wb") as errors,
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER, *arguments),
            cwd=prompt_file.parent,
            env=dict(environment),
            stdin=stdin,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    try:
        return await asyncio.wait_for(process.wait(), provider.timeout_seconds)
    except TimeoutError:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that it left behind as well


def _text(path: Path) -> str:
    """Returns the beginning of a file as text; empty if it is a link or not a regular file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(handle, "rb") as file:
        return file.read(MAX_BYTES).decode(errors="replace")


def _documents(printed: str) -> Iterator[Any]:
    """Yields the JSON of an output: the whole, or each of its lines that is JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        yield json.loads(printed)
        return
    for line in printed.split("\n"):  # other line breaks may occur inside strings
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line)


def _values(documents: Iterable[Any], path: str) -> list[Any]:
    """Returns the values at a dotted path, in which `*` is any name or index."""
    nodes = list(documents)
    for name in path.split("."):
        inner: list[Any] = []
        for node in nodes:
            if isinstance(node, dict):
                inner += node.values() if name == "*" else [node[k] for k in node if k == name]
            elif isinstance(node, list) and name == "*":
                inner += node
        nodes = inner
    return nodes


def _usage(documents: list[Any], provider: Command) -> dict[str, Any]:
    """Returns the reported usage; a figure that cannot be true is unknown.

    Zero dollars are the report of a command that knows no price, unless the profile has none.
    """
    dollars = _sum(documents, provider.dollars_at)
    free = provider.dollars_in == provider.dollars_out == provider.dollars_call == 0
    return {
        "input_tokens": token_count(_sum(documents, provider.input_tokens_at)),
        "output_tokens": token_count(_sum(documents, provider.output_tokens_at)),
        "dollars": dollars if dollars or free else None,
    }


def _sum(documents: list[Any], paths: Iterable[str]) -> float | None:
    """Returns the sum of the numbers at some paths; None if one is missing or not an amount."""
    values = [value for path in paths for value in _values(documents, path) if value is not None]
    amounts = all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
        for value in values
    )
    return sum(values) if values and amounts else None
