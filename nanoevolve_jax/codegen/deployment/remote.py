"""What runs on the cluster: checks a candidate's folder, trains it and its baseline, reports.

  cd FOLDER && python -B -m nanoevolve_jax.codegen.deployment.remote JOB

JOB is the id that the folder was submitted under. The result is one marked line on the standard
output, see `reply.py`. It needs no Ray, and reads nothing but the folder and a cache of prepared
text, `nanoevolve` in XDG_CACHE_HOME or ~/.cache.
"""

import sys
from pathlib import Path

from nanoevolve_jax.codegen.deployment.intact import FolderError, read_intact

BAD_INPUT = 2


def main(arguments: list[str]) -> None:
    """The command; nothing of the folder but the check itself is imported before it is checked."""
    if len(arguments) != 1:
        _fail(f"arguments are {' '.join(arguments)!r}; allowed: the id of one job")
    try:
        read_intact(Path.cwd(), arguments[0])
    except FolderError as error:
        _fail(error)
    print(f"{arguments[0]}: the folder is as it was submitted", flush=True)

    from nanoevolve_jax import command
    from nanoevolve_jax.codegen.deployment import paired

    command.run_on_arguments(paired.main)


def _fail(message: object) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main(sys.argv[1:])
