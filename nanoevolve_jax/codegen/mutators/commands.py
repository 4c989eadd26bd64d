"""Attempts with a command-line agent, which runs in a new folder and its own process group."""

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

MAX_BYTES = 4_000_000  # largest number of bytes of an output that are read

# Python program that replaces itself with the command. It forbids core dumps and, on Linux, makes
# the kernel kill the command when its parent ends.
_LAUNCHER = """\
import ctypes, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


async def attempt(provider: Command, prompt: str, environment: Mapping[str, str]) -> Attempt:
    """Runs a command once and returns its outcome.

    The process group of the command is killed when the command ends or reaches its time limit.

    Args:
      provider: Profile of the command.
      prompt: Text of the file `{prompt_file}`, also passed on standard input if the profile sets
        `prompt_on_stdin`.
      environment: Complete environment of the command.
    """
    with tempfile.TemporaryDirectory(prefix="nanoevolve-", ignore_cleanup_errors=True) as name:
        private = Path(name)
        folder = private / "work"  # keeps the files with the output out of the command's folder
        folder.mkdir()
        files = {"prompt_file": folder / "prompt.txt", "answer_file": folder / "answer.txt"}
        files["prompt_file"].write_text(prompt, encoding="utf-8")
        places = files | {"folder": folder, "model": provider.model}
        arguments = filled(provider.command, {key: str(places[key]) for key in PLACES})
        code = await _run(provider, arguments, private, files["prompt_file"], environment)
        # The tokens that a killed command has reported are incomplete, so they are left unknown.
        if code is None:
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
    """Runs a command and returns its exit code, or None if it reached its time limit."""
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
            os.killpg(process.pid, signal.SIGKILL)  # also kills processes that it left behind


def _text(path: Path) -> str:
    """Returns the beginning of a file as text, or "" if it is a link or cannot be opened."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(handle, "rb") as file:
        return file.read(MAX_BYTES).decode(errors="replace")


def _documents(printed: str) -> Iterator[Any]:
    """Yields the output as one JSON document, or each line of it that is JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        yield json.loads(printed)
        return
    for line in printed.split("\n"):  # `splitlines` would also split at breaks inside strings
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line)


def _values(documents: Iterable[Any], path: str) -> list[Any]:
    """Returns the values at a dotted path, in which `*` matches any name or index."""
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
    """Returns the usage that a command reports. Implausible numbers are replaced by None.

    A reported price of zero counts as unknown, unless all prices of the profile are zero.
    """
    dollars = _sum(documents, provider.dollars_at)
    free = provider.dollars_in == provider.dollars_out == provider.dollars_call == 0
    return {
        "input_tokens": token_count(_sum(documents, provider.input_tokens_at)),
        "output_tokens": token_count(_sum(documents, provider.output_tokens_at)),
        "dollars": dollars if dollars or free else None,
    }


def _sum(documents: list[Any], paths: Iterable[str]) -> float | None:
    """Returns the sum of the values at the paths; None without values or if one is not valid."""
    values = [value for path in paths for value in _values(documents, path) if value is not None]
    amounts = all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
        for value in values
    )
    return sum(values) if values and amounts else None
