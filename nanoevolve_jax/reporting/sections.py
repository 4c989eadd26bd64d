"""The sections of a report, in the order they are read, and the figures beside its verdict.

A section whose data a search does not have says so in a sentence.
"""

from nanoevolve_jax.reporting import training
from nanoevolve_jax.reporting.code_section import code
from nanoevolve_jax.reporting.evidence_sections import noise, placebos
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.overview import spent
from nanoevolve_jax.reporting.search_sections import compute, front, operator_section, origin
from nanoevolve_jax.reporting.section import Fact, Section
from nanoevolve_jax.reporting.training_sections import curves, drivers, policy
from nanoevolve_jax.reporting.words import win_level


def facts(history: History) -> list[Fact]:
    """The figures that belong beside the verdict."""
    record, records = training.subject(history), history.records
    level, missing = win_level(history)
    found = training.stage_gains(history, record)
    dead = sum(r.failure is not None for r in records)
    stages = spent(history).values()
    runs, tokens = (sum(stage[key] for stage in stages) for key in ("runs", "tokens"))
    facts = [
        Fact(
            "Win level",
            "unknown" if level is None else str(level),
            f"not higher: {missing}" if missing else "of 5",
        )
    ]
    if found:
        last = found[-1]
        interval = (
            f"95 % interval {last.gain.low:+.4f} to {last.gain.high:+.4f}"
            if last.seeds > 1
            else "one seed, no interval"
        )
        place = f"{last.stage}, over {last.against}; {interval}"
        facts.append(Fact(f"Gain of {record.id}, bpb", f"{last.gain.mean:+.4f}", place))
    cost = f"{record.cost / history.baseline.cost:.3f}x"
    return [
        *facts,
        Fact("Cost of a step", cost, f"FLOPs of {record.id} over the baseline's"),
        Fact(
            "Candidates",
            f"{len(records):,}",
            f"{records[-1].generation} generations after the founders; {dead} failed",
        ),
        Fact("Training runs", f"{runs:,}", f"{tokens:,} tokens, calibration not counted"),
    ]


def sections(history: History) -> dict[str, Section]:
    """Every section but that of the candidates, by name; of code only where there is any."""
    made = (
        curves(history),
        policy(history),
        drivers(history),
        front(history),
        *([rewritten] if (rewritten := code(history)) else []),
        operator_section(history),
        noise(history),
        placebos(history),
        compute(history),
        origin(history),
    )
    return {section.name: section for section in made}
