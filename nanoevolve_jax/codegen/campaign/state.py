"""What is settled of a campaign of code."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nanoevolve_jax.codegen.mutators.budget import Spent, total
from nanoevolve_jax.evolution import archive, proposals, tournament
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.proposals import Entry

MUTANT = "m"  # stands between a candidate's id and the number of a mutant of its spec


def origin(name: str) -> str:
    """The id of the candidate whose lanes a candidate shared; its own, if it is no mutant."""
    return name.partition(MUTANT)[0]


class State(NamedTuple):
    """What is settled."""

    entries: tuple[Entry, ...]
    records: tuple[Record, ...]  # founders first

    def record(self, name: str) -> Record:
        """The record of an id."""
        return next(record for record in self.records if record.id == name)

    @property
    def founders(self) -> list[Record]:
        """The candidates that no proposal made."""
        return [record for record in self.records if record.generation == 0]

    @property
    def fillers(self) -> list[Record]:
        """Mutants that filled a wait. Who waited how long decides which there are: in the books and
        for proposals it is as if there were none."""
        return [record for record in self.records if not origin(record.id)]

    @property
    def lasting(self) -> list[Record]:
        """All other candidates, which are the same however long anybody waited."""
        return [record for record in self.records if origin(record.id)]

    def before(self, count: int) -> "State":
        """What was settled when so many proposals were."""
        entries = self.entries[:count]
        names = {entry.candidate for entry in entries if entry.outcome == proposals.CANDIDATE}
        kept = [r for r in self.records if r.generation == 0 or origin(r.id) in names]
        return State(entries, tuple(kept))


def resumed(records: Sequence[Record], entries: Sequence[Entry], path: Path) -> list[Record]:
    """The records without those of proposals that are not in the books yet.

    A kill between archive and books leaves such, perhaps not all of them; they are cut off, and
    made again from runs that are known.

    Args:
      records: of the archive, founders first.
      entries: of the books.
      path: of the archive, which is rewritten if any are cut off.

    Raises:
      ArchiveError: if the archive lacks a candidate of the books, which are written after it.
    """
    names = {entry.candidate for entry in entries}
    if missing := sorted(names - {None} - {record.id for record in records}):
        raise ArchiveError(
            f"{path} must hold every candidate of {proposals.FILE}, got none of id {missing[0]!r}"
        )
    kept = [r for r in records if r.generation == 0 or origin(r.id) in {*names, ""}]
    if len(kept) < len(records):
        archive.rewrite(path, kept)
    return kept


class Status(NamedTuple):
    """Where the campaign is, for its one line."""

    settled: int
    proposals: int  # at most
    asking: int  # with a provider or in the jail
    ready: int  # answered and judged, and not yet settled
    best: Record
    baseline: Record
    spent: Spent
    refused: int


def status_of(state: State, proposals: int, asking: int, ready: int) -> Status:
    """The status of a campaign; arguments as the fields of `Status`."""
    return Status(
        settled=len(state.entries),
        proposals=proposals,
        asking=asking,
        ready=ready,
        best=best_of(state),
        baseline=state.records[0],
        spent=spent_on(state.entries),
        refused=sum(entry.outcome == proposals.REFUSED for entry in state.entries),
    )


def best_of(state: State) -> Record:
    """The best policy that is settled."""
    return tournament.survivors(state.records, 1)[0]


def spent_on(entries: Sequence[Entry]) -> Spent:
    """What settled proposals cost."""
    return total(
        Spent(e.calls, e.input_tokens + e.output_tokens, e.dollars, e.seconds) for e in entries
    )
