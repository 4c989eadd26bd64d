"""Lists deployed candidates: those sent from this machine, and others on the same clusters.

python -m nanoevolve_jax.codegen.status
python -m nanoevolve_jax.codegen.status --address=http://10.0.0.7:8265
"""

import time
from pathlib import Path

from absl import flags
from rich.table import Table

from nanoevolve_jax import command
from nanoevolve_jax.codegen.deployment import jobs, registry
from nanoevolve_jax.codegen.deployment.jobs import State
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution import ray_server
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.terminal.console import Console, plain
from nanoevolve_jax.terminal.pages import show

_ADDRESS = flags.DEFINE_string("address", ray_server.LOCAL, "address of a cluster to list as well")
_CACHE = flags.DEFINE_string("cache_dir", "cache", "folder with the registry of jobs")


def listed(cache: Path, address: str) -> tuple[dict[registry.Entry, State], list[ClusterError]]:
    """Returns all registered jobs and all other jobs on the clusters, oldest first.

    Args:
      cache: Folder with the registry.
      address: Address of a cluster to list in addition to those of the registered jobs.

    Returns:
      State of every job by its entry, and errors of the clusters that cannot be reached.
    """
    known = {entry.job: entry for entry in registry.entries(cache)}
    states: dict[str, State] = {}
    errors: dict[str, ClusterError] = {}
    for place in {address: 0} | {entry.address: 0 for entry in known.values()}:
        try:
            for state in jobs.listed(place):
                states[state.job] = state
                other = registry.Entry(state.job, state.candidate, place, "", state.started)
                known.setdefault(state.job, other)
        except ClusterError as error:
            errors[place] = error
    for job, entry in known.items():
        gone = State(job, jobs.LOST, "its cluster is gone; `deploy` sends it again")
        unlisted = State(job, "unreachable") if entry.address in errors else gone
        states.setdefault(job, State(job, jobs.SUCCEEDED) if entry.result else unlisted)
    ordered = sorted(known.values(), key=lambda entry: (entry.sent, entry.job))
    return {entry: states[entry.job] for entry in ordered}, list(errors.values())


def outcome(entry: registry.Entry, state: State) -> str:
    """Returns a phrase about the outcome of a job, and stores a newly fetched result.

    Args:
      entry: Entry of the job in the registry.
      state: State of the job on its cluster.
    """
    result = entry.result
    if result is None and state.status == jobs.SUCCEEDED:
        try:
            result = jobs.result(entry.job, entry.address)
        except EvidenceError as error:  # a damaged result must not hide the other jobs
            return str(error)
        if result and entry.place:
            entry.keep(result)
    return registry.summary(result) if result else state.message


def main(arguments: list[str]) -> None:
    """Shows the table of deployed candidates.

    Args:
      arguments: Command-line arguments, which must be empty.
    """
    if arguments:
        command.fail(must("arguments", "be absent", " ".join(arguments)))
    cache = Path(_CACHE.value)
    rows, errors = listed(cache, ray_server.absolute(_ADDRESS.value, cache))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "candidate", "status", "sent", "result"):
        table.add_column(name, no_wrap=name in ("job", "sent"), overflow="fold")
    for entry, state in rows.items():
        sent = time.strftime("%m-%d %H:%M", time.localtime(entry.sent))
        table.add_row(entry.job, entry.candidate, state.status, sent, outcome(entry, state))
    page = [table if rows else plain("nothing was deployed"), *(plain(e) for e in errors)]
    show(page, Console())


if __name__ == "__main__":
    command.run_on_arguments(main, only_prints=True)
