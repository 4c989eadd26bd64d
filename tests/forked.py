"""Runs `nanoevolve` command lines, each in a fork of a process that has already imported JAX.

Importing JAX in a new process takes seconds, and a fork takes milliseconds. The parent process
never uses JAX and never imports a command, so each fork starts in the state of a new process.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_SECONDS = 120


class Outcome(NamedTuple):
    """The exit code and the output of a command line."""

    code: int
    output: str
    errors: str


class Shell:
    """Context manager that runs command lines."""

    def __init__(self, repository: Path):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"PYTHONPATH": str(repository), "COLUMNS": "80"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __call__(
        self,
        *arguments,
        folder: Path,
        streams: Mapping[int, str] | None = None,
        environment: Mapping[str, str] | None = None,
        encoding: str = "utf-8",
    ) -> Outcome:
        """Runs `nanoevolve ARGUMENTS` in a folder, or a module if the first argument is -m.

        Args:
          arguments: Words of the command line.
          folder: Working directory.
          streams: State of descriptors 0 to 2 by number: "closed", "gone" (a pipe without a
            reader) or "full" (a full device).
          environment: Environment variables that are added to those of this process.
          encoding: Encoding of the standard streams, as PYTHONIOENCODING sets it.

        Returns:
          The exit code and the captured output.
        """
        request = {
            "arguments": list(map(str, arguments)),
            "folder": str(folder),
            "streams": {str(number): state for number, state in (streams or {}).items()},
            "environment": dict(environment or {}),
            "encoding": encoding,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    import nanoevolve_jax.command
    import nanoevolve_jax.evidence.trial
    import nanoevolve_jax.planning  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if not child:
                _become(json.loads(line), output.fileno(), errors.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for file in (output, errors):
                file.seek(0)
            outcome = Outcome(code, output.read(), errors.read())
        print(json.dumps(outcome._asdict()), flush=True)


def _become(request: dict, output: int, errors: int) -> None:
    from nanoevolve_jax.cli import main

    signal.alarm(_SECONDS)
    for place, number in enumerate((os.open(os.devnull, os.O_RDONLY), output, errors)):
        os.dup2(number, place)
    _spoil(request["streams"], request["encoding"])
    os.environ.update(request["environment"])
    code = 1
    try:
        os.chdir(request["folder"])
        name, *rest = request["arguments"] or [""]
        if name == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__")
        sys.argv = ["nanoevolve", *request["arguments"]]
        code = main()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code or 0)


def _spoil(streams: Mapping[str, str], encoding: str) -> None:
    """Puts the standard streams into the state that a shell's redirections would leave."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=encoding)
    for number, state in streams.items():
        name = ("stdin", "stdout", "stderr")[int(number)]
        if state == "closed":
            os.close(int(number))
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
        elif state == "gone":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, int(number))
        else:
            os.dup2(os.open(f"/dev/{state}", os.O_WRONLY), int(number))


if __name__ == "__main__":
    _serve()
