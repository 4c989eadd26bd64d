"""A search that kills itself with SIGKILL at a given moment; `test_resume.py` runs it.

  python tests/killed_search.py MOMENT COUNT --config=... [flags of the search]

MOMENT is one of `MOMENTS`, and COUNT is the number of its occurrence in this process. With `never`
and 0 the search runs to its end.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MOMENTS = ("seconds", "append", "checkpoint", "telemetry", "segment")


def die() -> None:
    """Kills this process with SIGKILL, so nothing is flushed or closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(count: int, function, *, before=lambda *args: None):
    """Returns the function wrapped to call `before` and kill the process at call number `count`."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            before(*args)
            die()
        return function(*args, **kwargs)

    return wrapped


def half_a_generation(path, records):
    """Appends the first half of the bytes of the records, which ends within a line."""
    from nanoevolve_jax.evolution import archive

    before = path.read_bytes() if path.exists() else b""
    archive.append(path, records)
    fresh = path.read_bytes()[len(before) :]
    path.write_bytes(before + fresh[: len(fresh) // 2])


def arm(moment: str, count: int) -> None:
    """Prepares the kill of this process at the given moment."""
    import numpy as np

    from nanoevolve_jax.evolution import archive
    from nanoevolve_jax.execution.checkpoint import Checkpoints
    from nanoevolve_jax.execution.engine import LocalEngine

    if moment == "append":
        plain = archive.append
        dying = dies_at(count, plain, before=lambda *args: half(*args))

        def half(path, records):
            archive.append = plain
            half_a_generation(path, records)

        archive.append = dying
    elif moment == "checkpoint":
        save, calls = Checkpoints._save, 0

        def saved(self, checkpoint):
            nonlocal calls
            save(self, checkpoint)
            calls += 1
            if calls == count:  # Orbax is now writing in the background
                threading.Timer(0.01, die).start()

        Checkpoints._save = saved
    elif moment == "settled":  # every checkpoint is complete at this kill
        plain_boundary = Checkpoints.boundary

        def boundary(self, make):
            plain_boundary(self, make)
            self._manager.wait_until_finished()

        Checkpoints.boundary = dies_at(count, boundary)
    elif moment == "telemetry":
        np.savez_compressed = dies_at(
            count, np.savez_compressed, before=lambda file, **_: file.write(b"PK torn")
        )
    elif moment == "segment":
        LocalEngine._advance = dies_at(count, LocalEngine._advance)


def main() -> None:
    moment, count = sys.argv[1], float(sys.argv[2])
    del sys.argv[1:3]
    if moment == "seconds":

        def later():
            time.sleep(count)
            die()

        threading.Thread(target=later, daemon=True).start()

    from nanoevolve_jax import command, search

    if moment in (*MOMENTS, "settled"):
        arm(moment, int(count))
    command.run(search.search)


if __name__ == "__main__":
    main()
