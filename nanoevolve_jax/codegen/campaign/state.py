"""Settled state of a campaign of code, and the target of its next proposal.

The target of a proposal is a pure function of the settled state and of a generator seeded with
(seed, number), so a resumed campaign makes the same proposals. Proposal n depends only on proposals
up to n - `config.codegen.window`. Up to `config.codegen.window` proposals can therefore be under
way at once, and the order in which answers arrive has no effect.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.codegen.mutators.budget import Spent, total
from nanoevolve_jax.evolution import archive, proposals
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.proposals import CANDIDATE, FAILED, REFUSED, SAME, Entry
from nanoevolve_jax.evolution.tournament import best_first, draw_parent, survivors
from nanoevolve_jax.execution.json_files import Count, Id
from nanoevolve_jax.policy.slots import SCOPES, SLOTS, is_read

MUTANT = "m"  # separates the id of a candidate from the number of a mutant of its spec
_STREAM = 6  # stream of random numbers, distinct from the streams of a search
_SHOWN = 2  # number of good candidates shown in addition to the parent


def parent_of_mutant(id: str) -> str:
    """Returns the id of the candidate that a mutant was trained with.

    Args:
      id: Id of a candidate.

    Returns:
      Id of the mutant's parent, "" for a filler, or the id itself if it is not a mutant's.
    """
    return id.partition(MUTANT)[0]


class State(NamedTuple):
    """Settled proposals and the candidates of the archive."""

    entries: tuple[Entry, ...]
    records: tuple[Record, ...]  # founders first

    def record(self, id: str) -> Record:
        """Returns the record of the candidate with the given id.

        Args:
          id: Id of a candidate of the archive.
        """
        return next(record for record in self.records if record.id == id)

    @property
    def fillers(self) -> list[Record]:
        """Mutants that were trained while the campaign was waiting for proposals.

        Their number depends on timing, so proposals and their journal ignore them.
        """
        return [record for record in self.records if not parent_of_mutant(record.id)]

    @property
    def lasting(self) -> list[Record]:
        """All candidates except fillers."""
        return [record for record in self.records if parent_of_mutant(record.id)]

    def before(self, count: int) -> "State":
        """Returns the state after the first `count` proposals were settled, without fillers.

        Args:
          count: Number of proposals.
        """
        entries = self.entries[:count]
        ids = {entry.candidate for entry in entries if entry.outcome == CANDIDATE}
        kept = [r for r in self.records if r.generation == 0 or parent_of_mutant(r.id) in ids]
        return State(entries, tuple(kept))


def resumed(records: Sequence[Record], entries: Sequence[Entry], path: Path) -> list[Record]:
    """Returns the records without those of proposals that are not in the journal.

    A process that is killed after it has written to the archive and before it has written to the
    journal leaves such records, possibly only some of a proposal. They are removed from the archive
    and recreated later from known runs.

    Args:
      records: Records of the archive, founders first.
      entries: Entries of the journal.
      path: Path of the archive, which is rewritten if records are removed.

    Raises:
      ArchiveError: If the archive lacks a candidate of the journal. The archive is always written
        before the journal.
    """
    ids = {entry.candidate for entry in entries}
    if missing := sorted(ids - {None} - {record.id for record in records}):
        raise ArchiveError(
            f"{path} must hold every candidate of {proposals.FILE}, got none of id {missing[0]!r}"
        )
    kept = [r for r in records if r.generation == 0 or parent_of_mutant(r.id) in {*ids, ""}]
    if len(kept) < len(records):
        archive.rewrite(path, kept)
    return kept


def best_of(state: State) -> Record:
    """Returns the record of the best candidate.

    Args:
      state: State with at least one record.
    """
    return survivors(state.records, 1)[0]


def spent_on(entries: Sequence[Entry]) -> Spent:
    """Returns the cost of settled proposals.

    Args:
      entries: Journal entries of the proposals.
    """
    return total(
        Spent(e.calls, e.input_tokens + e.output_tokens, e.dollars, e.seconds) for e in entries
    )


# Targets ------------------------------------------------------------------------------------


class Target(msgspec.Struct, frozen=True):
    """Parent and slot that a proposal edits; stored in the field `aim` of `inputs.json`."""

    number: Count
    island: Count
    slot: Literal[tuple(SLOTS)]
    parent: Id
    shown: tuple[Id, ...]  # other good candidates, starting with the best of its island


def slots_of(config: ConfigDict) -> tuple[str, ...]:
    """Returns the slots that a campaign may rewrite.

    Args:
      config: Full configuration, whose field `codegen.scope` selects the slots.
    """
    return tuple(SLOTS) if config.codegen.scope == "all" else SCOPES[config.codegen.scope]


def draw_target(number: int, known: State, config: ConfigDict) -> Target:
    """Draws the parent and slot that a proposal edits.

    Args:
      number: Number of the proposal, counted from 0.
      known: Settled state that the proposal may depend on. Founders belong to every island.
      config: Full configuration.
    """
    islands, migrate = config.codegen.islands, config.codegen.migrate
    rng = np.random.default_rng([config.seed, _STREAM, number])
    turn, island = divmod(number, islands)
    slots = slots_of(config)
    slot = slots[rng.integers(len(slots))]
    migrates = migrate and turn % migrate == migrate - 1
    home = (island + 1) % islands if migrates else island
    at_home = {e.candidate for e in known.entries if e.island == home and e.outcome == CANDIDATE}
    pool = [r for r in known.records if r.generation == 0 or parent_of_mutant(r.id) in at_home]
    # Code that the spec does not call has no measurable effect.
    usable = [record for record in pool if record.recipe is None and is_read(slot, record.spec)]
    parent = draw_parent(
        best_first(usable)[: config.search.survivors], rng, config.search.tournament
    )
    # The best candidate of the island is shown first, so that not every proposal is shown only the
    # best candidates overall.
    own, everyone = (
        [record.id for record in best_first(some) if record.code and record.id != parent.id]
        for some in (pool, known.records)
    )
    shown = tuple(dict.fromkeys([*own[:1], *everyone]))[:_SHOWN]
    return Target(number, island, slot, parent.id, shown)


# Reports ------------------------------------------------------------------------------------


class Status(NamedTuple):
    """Progress of a campaign."""

    state: State
    proposals: int  # largest number of proposals
    waiting: int  # number of proposals that wait for a provider or the sandbox
    ready: int  # number of proposals that are validated but not settled

    @property
    def line(self) -> str:
        """Progress as one line."""
        state, best = self.state, best_of(self.state)
        gain = best.merit.val_bpb - state.records[0].merit.val_bpb
        refused = sum(entry.outcome == REFUSED for entry in state.entries)
        return (
            f"{len(state.entries)} of {self.proposals} proposals done, {refused} of them refused, "
            f"{self.waiting} asked for, {self.ready} answered | best {best.id} "
            f"{best.merit.val_bpb:.4f} bpb, {gain:+.4f} | "
            f"${spent_on(state.entries).dollars:.4f} spent"
        )


def entry_line(entry: Entry, state: State) -> str:
    """Returns the outcome of a proposal as one line.

    Args:
      entry: Journal entry of the proposal.
      state: State that contains the candidate of the proposal, if there is one.
    """
    about = f"p{entry.number:04d} {entry.slot} of {entry.parent} by {entry.provider}"
    if entry.outcome == FAILED:
        return f"{about}: no answer ({entry.message})"
    if entry.outcome == REFUSED:
        return f"{about}: refused, {entry.reason} ({entry.message})"
    if entry.outcome == SAME:
        return f"{about}: computes what {entry.candidate} computes"
    record = state.record(entry.candidate)
    if record.failure is not None:
        return f"{about}: dead, {record.failure['reason']} at step {record.failure['step']}"
    gain = record.merit.val_bpb - state.records[0].merit.val_bpb
    return f"{about}: {record.merit.val_bpb:.4f} bpb, {gain:+.4f}, score {record.score:+.3f}"
