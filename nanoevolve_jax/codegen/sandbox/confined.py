"""The first code inside the walls: it gives up what is left to give up, then runs a script.

It is started as `python -I -B confined.py SETTINGS` and imports nothing but Python's own library.
SETTINGS is JSON: `script` and its `folder` for results, `paths` to import from, `limits` of the
process by their names in `resource`, the number of `cpus`, the `most` bytes that may come back, and
whether to `filter` system calls. What the script leaves in its folder goes to standard output as
one frame: eight bytes with the length of a JSON list of [name, size], that list, the contents.
What the script prints goes to standard error.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import resource
import runpy
import stat
import struct
import sys
import traceback

_MOST_FILES = 4096
_PARENT_DEATH_SIGNAL, _KILLED = 1, 9


def main() -> int:
    """Confines this process, runs the script, and sends what it has left."""
    settings = json.loads(sys.argv[1])
    answer = os.dup(1)
    os.dup2(2, 1)
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, ctypes.c_ulong(_KILLED))
    os.makedirs(settings["folder"], mode=0o700, exist_ok=True)
    os.chdir(settings["folder"])
    sys.path[:] = [*settings["paths"], *sys.path]
    _limit(settings)
    if settings["filter"]:
        _seccomp().install()
    sys.argv = [settings["script"], settings["folder"]]
    code = _run(settings["script"])
    with contextlib.suppress(OSError):
        _send(answer, settings["folder"], settings["most"])
    return code


def _limit(settings: dict) -> None:
    for name, value in settings["limits"].items():
        number = getattr(resource, name)
        with contextlib.suppress(ValueError, OSError):  # a harder limit is there already
            resource.setrlimit(number, (value, value))
    cpus = sorted(os.sched_getaffinity(0))
    first = os.getppid() % len(cpus)  # or all children would share the first
    chosen = (cpus[first:] + cpus[:first])[: settings["cpus"]]
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, chosen)


def _seccomp():
    """The module beside this one; not imported as a part of the package, which is not needed."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seccomp.py")
    spec = importlib.util.spec_from_file_location("seccomp", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(script: str) -> int:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _send(answer: int, folder: str, most: int) -> None:
    """Sends the files of a folder; what is no plain file is named with a size of -1."""
    entries, contents = [], []
    for entry in sorted(os.listdir(folder))[:_MOST_FILES]:
        content = _plain(os.path.join(folder, entry), most)
        entries.append([entry, -1 if content is None else len(content)])
        contents.append(content or b"")
        most -= len(contents[-1])
        if most < 0:
            break
    header = json.dumps(entries).encode()
    with os.fdopen(answer, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for content in contents:
            stream.write(content)


def _plain(path: str, most: int) -> bytes | None:
    """At most one byte more than `most` of a plain file; None for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(max(0, most) + 1)


if __name__ == "__main__":
    end = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end & 0xFF)  # no handler of the script's has a say in how this ends
