"""Follows a deployed candidate: its state, its log as it grows, at the end its result.

  python -m nanoevolve_jax.codegen.trace nano-0123456789abcdef
  python -m nanoevolve_jax.codegen.trace nano-0123456789abcdef --nofollow

It may be ended and run again at any time: the job does not notice. The result is written to
`deployed/JOB/result.json` in the candidate's run folder. The exit code is 1 if the job has failed.
"""

import time
from pathlib import Path

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.codegen.deployment import book, cluster, reply, server
from nanoevolve_jax.terminal import streams

FAILED = 1
_TICK = 1.0  # seconds between two looks


def entry_of(job: str, cache: Path, address: str) -> book.Entry:
    """The entry of a job; one is made up for a job of another machine.

    Raises:
      FolderError: if the job is not in the book, and there is no address to ask at.
    """
    if address and job not in [entry.job for entry in book.entries(cache)]:
        place = (cache / book.FOLDER / job).absolute()
        return book.Entry(job, job, server.absolute(address, cache), str(place), time.time())
    return book.find(cache, job)


def trace(entry: book.Entry, *, follow: bool) -> int:
    """Prints what there is, and what comes; returns the exit code."""
    shown, told = 0, ""
    while True:
        state = cluster.poll(entry.job, entry.address)  # before the log, which is whole at the end
        ended = state.status in cluster.ENDED
        if follow and not ended and state.status != told:  # a job may wait long for its turn
            told = state.status
            streams.print_line(f"{entry.job}, {entry.candidate}: {told}")
        log = cluster.log(entry.job, entry.address)
        until = len(log) if ended else log.rfind("\n") + 1
        for line in log[shown:until].splitlines():
            if not line.startswith(reply.MARK):
                streams.print_line(line)
        shown = max(shown, until)
        if ended or not follow:
            break
        time.sleep(_TICK)
    streams.print_line(f"{entry.job}, {entry.candidate}: {state.status}")
    if state.status == cluster.SUCCEEDED:
        return _keep(entry, reply.from_log(log, entry.job))
    if ended:
        streams.print_line(state.message or "no reason is given")
    return FAILED if ended else 0


def _keep(entry: book.Entry, result: dict | None) -> int:
    if result is None:
        streams.print_line("its log has no result")
        return FAILED
    streams.print_line(reply.in_words(result))
    streams.print_line(entry.keep(result))
    return 0


def main(arguments: list[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        command.fail(f"arguments are {' '.join(arguments)!r}; allowed: the id of one job")
    given = flags.FLAGS
    entry = entry_of(arguments[0], Path(given.cache_dir), given.address)
    known = entry.result
    if known is None:
        return trace(entry, follow=given.follow)
    streams.print_line(f"{entry.job}, {entry.candidate}: {cluster.SUCCEEDED}, fetched before")
    return _keep(entry, known)


if __name__ == "__main__":  # flags of such common names would clash in who only imports this
    flags.DEFINE_string("address", "", "of a job that was not deployed from here")
    flags.DEFINE_string("cache_dir", "cache", "folder with the book of deployments")
    flags.DEFINE_bool("follow", True, "wait for the end; otherwise only what is there")
    command.run_on_arguments(main, only_prints=True)
