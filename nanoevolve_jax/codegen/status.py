"""Lists deployed candidates: those sent from here, and all others of the cluster.

python -m nanoevolve_jax.codegen.status
python -m nanoevolve_jax.codegen.status --address=http://10.0.0.7:8265
"""

import time
from pathlib import Path

from absl import flags
from rich.table import Table

from nanoevolve_jax import command
from nanoevolve_jax.codegen.deployment import book, cluster, reply, server
from nanoevolve_jax.codegen.deployment.book import Entry
from nanoevolve_jax.codegen.deployment.cluster import State
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.terminal.console import Console, plain
from nanoevolve_jax.terminal.pages import show

UNREACHABLE = "unreachable"
_ADDRESS = flags.DEFINE_string("address", server.LOCAL, "of a cluster to ask besides those known")
_CACHE = flags.DEFINE_string("cache_dir", "cache", "folder with the book of deployments")
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def jobs(entries: list[Entry], asked: str) -> tuple[list[tuple[Entry, State]], list[ClusterError]]:
    """Every job that was sent from here, and every other one of the clusters, the oldest first.

    Args:
      entries: of the book.
      asked: an address whose jobs are listed, too.

    Returns:
      (jobs, and why clusters did not answer).
    """
    known = {entry.job: entry for entry in entries}
    states: dict[str, State] = {}
    silent: dict[str, ClusterError] = {}
    for address in dict.fromkeys([*(entry.address for entry in entries), asked]):
        try:
            for state in cluster.listed(address):
                states[state.job] = state
                other = Entry(state.job, state.candidate, address, "", state.started or 0.0)
                known.setdefault(state.job, other)
        except ClusterError as error:
            silent[address] = error
    return [
        (entry, states.get(entry.job) or _unseen(entry, entry.address in silent))
        for entry in sorted(known.values(), key=lambda entry: (entry.sent, entry.job))
    ], list(silent.values())


def _unseen(entry: Entry, silent: bool) -> State:
    if entry.result is not None:
        return State(entry.job, cluster.SUCCEEDED)
    if silent:
        return State(entry.job, UNREACHABLE)
    return State(entry.job, cluster.LOST, "its cluster is gone; `deploy` sends it again")


def outcome(entry: Entry, state: State) -> str:
    """What a job gave, in a few words; a result that is new here is kept."""
    result = entry.result
    if result is None and state.status == cluster.SUCCEEDED:
        try:
            result = cluster.result(entry.job, entry.address)
        except EvidenceError as error:  # which says nothing about other jobs
            return str(error)
        if result and entry.place:
            entry.keep(result)
    return reply.in_words(result) if result else state.message if _bad(state) else ""


def _bad(state: State) -> bool:
    return state.status in cluster.ENDED and state.status != cluster.SUCCEEDED


def age(seconds: float) -> str:
    """A time span in its largest unit: '3 min'."""
    name, length = next((u for u in _UNITS if seconds >= u[1]), _UNITS[-1])
    return f"{max(0, int(seconds // length))} {name}"


def main(arguments: list[str]) -> None:
    """The command."""
    if arguments:
        command.fail(f"arguments are {' '.join(arguments)!r}; allowed: none")
    cache = Path(_CACHE.value)
    found, silent = jobs(book.entries(cache), server.absolute(_ADDRESS.value, cache))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "candidate", "status", "age", "result"):
        table.add_column(name, no_wrap=name in ("job", "age"), overflow="fold")
    now = time.time()
    for entry, state in found:
        table.add_row(
            *(entry.job, entry.candidate, state.status, age(now - entry.sent)),
            outcome(entry, state),
        )
    page = [table if found else plain("nothing was deployed"), *(plain(e) for e in silent)]
    show(page, Console())


if __name__ == "__main__":
    command.run_on_arguments(main, only_prints=True)
