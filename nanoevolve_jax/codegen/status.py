"""Lists deployed candidates: those sent from this machine, and all others of the cluster.

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
from nanoevolve_jax.codegen.deployment.registry import Entry
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution import ray_server
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.terminal.console import Console, plain
from nanoevolve_jax.terminal.pages import show

_ADDRESS = flags.DEFINE_string("address", ray_server.LOCAL, "address of a cluster to list as well")
_CACHE = flags.DEFINE_string("cache_dir", "cache", "folder with the registry of jobs")
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def all_jobs(
    entries: list[Entry], address: str
) -> tuple[list[tuple[Entry, State]], list[ClusterError]]:
    """Returns every registered job and every other job of the clusters, oldest first.

    Args:
      entries: Registered jobs.
      address: Address of a further cluster.

    Returns:
      (jobs, errors of clusters that cannot be reached).
    """
    known = {entry.job: entry for entry in entries}
    states: dict[str, State] = {}
    errors: dict[str, ClusterError] = {}
    for place in dict.fromkeys([*(entry.address for entry in entries), address]):
        try:
            for state in jobs.listed(place):
                states[state.job] = state
                other = Entry(state.job, state.candidate, place, "", state.started)
                known.setdefault(state.job, other)
        except ClusterError as error:
            errors[place] = error
    ordered = sorted(known.values(), key=lambda entry: (entry.sent, entry.job))
    return [(e, states.get(e.job) or _unlisted(e, e.address in errors)) for e in ordered], [
        *errors.values()
    ]


def _unlisted(entry: Entry, unreachable: bool) -> State:
    if entry.result is not None:
        return State(entry.job, jobs.SUCCEEDED)
    if unreachable:
        return State(entry.job, "unreachable")
    return State(entry.job, jobs.LOST, "its cluster is gone; `deploy` sends it again")


def outcome(entry: Entry, state: State) -> str:
    """Returns a phrase about the outcome of a job, and keeps a result that is new here."""
    result = entry.result
    if result is None and state.status == jobs.SUCCEEDED:
        try:
            result = jobs.result(entry.job, entry.address)
        except EvidenceError as error:  # other jobs are not affected
            return str(error)
        if result and entry.place:
            entry.keep(result)
    if result:
        return registry.summary(result)
    return state.message if state.status in (jobs.FAILED, jobs.STOPPED, jobs.LOST) else ""


def age(seconds: float) -> str:
    """Returns a time span in its largest unit, such as '3 min'."""
    name, length = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    return f"{max(0, int(seconds // length))} {name}"


def main(arguments: list[str]) -> None:
    """Runs the command."""
    if arguments:
        command.fail(must("arguments", "be absent", " ".join(arguments)))
    cache = Path(_CACHE.value)
    rows, errors = all_jobs(registry.entries(cache), ray_server.absolute(_ADDRESS.value, cache))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "candidate", "status", "age", "result"):
        table.add_column(name, no_wrap=name in ("job", "age"), overflow="fold")
    for entry, state in rows:
        since = age(time.time() - entry.sent)
        table.add_row(entry.job, entry.candidate, state.status, since, outcome(entry, state))
    page = [table if rows else plain("nothing was deployed"), *(plain(e) for e in errors)]
    show(page, Console())


if __name__ == "__main__":
    command.run_on_arguments(main, only_prints=True)
