"""A campaign of code told in lines."""

from collections.abc import Sequence

from nanoevolve_jax.codegen.campaign.state import Status
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.proposals import Entry


def status_line(status: Status) -> str:
    """Where a campaign is: one line."""
    best, baseline = status.best, status.baseline
    gain = best.merit.val_bpb - baseline.merit.val_bpb
    return (
        f"{status.settled} of {status.proposals} proposals done, {status.refused} of them refused, "
        f"{status.asking} asked for, {status.ready} answered | best {best.id} "
        f"{best.merit.val_bpb:.4f} bpb, {gain:+.4f} | ${status.spent.dollars:.4f} spent"
    )


def entry_line(entry: Entry, records: Sequence[Record]) -> str:
    """What became of a proposal: one line."""
    about = f"p{entry.number:04d} {entry.slot} of {entry.parent} by {entry.provider}"
    if entry.outcome == proposals.FAILED:
        return f"{about}: no answer ({entry.message})"
    if entry.outcome == proposals.REFUSED:
        return f"{about}: refused, {entry.reason} ({entry.message})"
    if entry.outcome == proposals.SAME:
        return f"{about}: computes what {entry.candidate} computes"
    record = next(record for record in records if record.id == entry.candidate)
    if record.failure is not None:
        return f"{about}: dead, {record.failure['reason']} at step {record.failure['step']}"
    gain = record.merit.val_bpb - records[0].merit.val_bpb
    return f"{about}: {record.merit.val_bpb:.4f} bpb, {gain:+.4f}, score {record.score:+.3f}"
