"""Follows a deployed candidate and prints its status, its log and finally its result.

  python -m nanoevolve_jax.codegen.trace nano-0123456789abcdef
  python -m nanoevolve_jax.codegen.trace nano-0123456789abcdef --nofollow

Interrupting the command does not stop the job. The result is written to `deployed/JOB/result.json`
in the candidate's run folder. The exit code is 1 if the job has failed.
"""

import time
from pathlib import Path

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.codegen.deployment import jobs, registry
from nanoevolve_jax.errors import must
from nanoevolve_jax.execution import ray_server
from nanoevolve_jax.terminal.streams import print_line

FAILED = 1
_TICK = 1.0  # seconds between two polls of the job


def trace(entry: registry.Entry, *, follow: bool) -> int:
    """Prints the log of a job, then its result, and returns the exit code.

    Args:
      entry: Entry of the job in the registry.
      follow: Whether to wait until the job has ended and to print its log as it grows.

    Returns:
      1 if the job has ended without a result, otherwise 0.
    """
    name, printed, status = f"{entry.job}, {entry.candidate}", 0, ""
    while True:
        # Polled before the log is read, so that the log of an ended job is complete.
        state = jobs.poll(entry.job, entry.address)
        ended = state.status in jobs.ENDED
        if follow and not ended and state.status != status:  # a job may be pending for a long time
            status = state.status
            print_line(f"{name}: {status}")
        log = jobs.log(entry.job, entry.address)
        until = max(printed, len(log) if ended else log.rfind("\n") + 1)
        for line in log[printed:until].splitlines():
            if not line.startswith(registry.MARK):
                print_line(line)
        printed = until
        if ended or not follow:
            break
        time.sleep(_TICK)
    print_line(f"{name}: {state.status}")
    if state.status == jobs.SUCCEEDED:
        result = registry.from_log(log, entry.job)
        return _keep(entry, result) if result else _fail("its log has no result")
    return _fail(state.message or "no reason is given") if ended else 0


def _fail(reason: str) -> int:
    print_line(reason)
    return FAILED


def _keep(entry: registry.Entry, result: dict) -> int:
    print_line(registry.summary(result))
    print_line(entry.keep(result))
    return 0


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code.

    Args:
      arguments: Command-line arguments: the id of the job.

    Returns:
      1 if the job has ended without a result, otherwise 0.

    Raises:
      FolderError: If the job was not sent from this machine and no address is given.
    """
    if len(arguments) != 1:
        command.fail(must("arguments", "be the id of one job", " ".join(arguments)))
    (job,), given = arguments, flags.FLAGS
    cache = Path(given.cache_dir)
    if given.address and job not in [entry.job for entry in registry.entries(cache)]:
        address, place = ray_server.absolute(given.address, cache), cache / registry.FOLDER / job
        entry = registry.Entry(job, job, address, str(place.absolute()), time.time())
    else:
        entry = registry.find(cache, job)
    if (result := entry.result) is None:
        return trace(entry, follow=given.follow)
    print_line(f"{job}, {entry.candidate}: {jobs.SUCCEEDED}, fetched before")
    return _keep(entry, result)


# Flags are defined here because other commands define flags with the same names.
if __name__ == "__main__":
    flags.DEFINE_string("address", "", "address of a job that was sent from another machine")
    flags.DEFINE_string("cache_dir", "cache", "folder with the registry of jobs")
    flags.DEFINE_bool("follow", True, "wait for the end of the job")
    command.run_on_arguments(main, only_prints=True)
