"""What a proposal tells its provider: the parent's code and evidence, and what is known besides."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.codegen.campaign.islands import Aim
from nanoevolve_jax.codegen.campaign.pipeline import NO_EDIT, Brief
from nanoevolve_jax.codegen.campaign.state import State
from nanoevolve_jax.codegen.mutators import bandit, prompts
from nanoevolve_jax.codegen.mutators.tries import SOURCE
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.evidence.trajectories import SCREENED, read_telemetry
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.library import code_of
from nanoevolve_jax.evolution.proposals import Entry
from nanoevolve_jax.execution.plain_files import read_plain
from nanoevolve_jax.policy.slots import built_in_source
from nanoevolve_jax.policy.spec import Sensors

_FAILURES, _TRIED, _LINES = 4, 12, 4
_STREAM = 9  # of random numbers
_NOT_APPLIED = "the answer could not be applied to the source as an edit"


def source_of(folder: Path, record: Record, slot: str) -> str:
    """The source of a candidate's slot, whoever of its line wrote it."""
    code = code_of(folder, record.code)
    function = code.of(slot) if code else None
    return function.source if function else built_in_source(slot)


def brief_of(
    aim: Aim, known: State, *, config: ConfigDict, folder: Path, shapes: Sequence[tuple[int, int]]
) -> Brief:
    """The brief of a proposal.

    Args:
      aim: what it is about.
      known: what it may know of.
      config: whole.
      folder: of the run.
      shapes: of the model's matrices, [inputs, outputs].
    """
    baseline = known.records[0]

    def shown(name: str) -> prompts.Parent:
        record = known.record(name)
        source = source_of(folder, record, aim.slot)
        return prompts.Parent(name, source, evidence_of(record, baseline, folder))

    parent = shown(aim.parent)
    text = prompts.prompt(
        aim.number,
        aim.slot,
        scope_of(aim.slot, config.codegen.scope),
        parent,
        prompts.language_rules(config.codegen.max_cost),
        best=[other for other in map(shown, aim.shown) if other.source != parent.source],
        failures=failures_of(aim.slot, known, folder)[-_FAILURES:],
        tried=tried_of(aim.slot, known)[-_TRIED:],
        shapes=sorted(set(shapes)) if aim.slot == "direction" else (),
    )
    return Brief(aim.slot, parent.source, provider_of(aim.number, known.entries, config), text)


def scope_of(slot: str, asked: str) -> str:
    """What a rewriting is about."""
    return asked if asked != "all" else "matrix" if slot == "direction" else "gating"


def provider_of(number: int, entries: Sequence[Entry], config: ConfigDict) -> str:
    """Whom a proposal asks."""
    return bandit.choose(
        names_of(config), bandit.history_of(entries), [config.seed, _STREAM, number]
    )


def names_of(config: ConfigDict) -> list[str]:
    """The profiles that a config asks."""
    return [name.strip() for name in config.codegen.ensemble.split(",") if name.strip()]


def evidence_of(record: Record, baseline: Record, folder: Path) -> prompts.Evidence:
    """What was measured of a candidate."""
    merit = record.merit
    return prompts.Evidence(
        score=record.score if np.isfinite(record.score) else None,
        bpb=merit.val_bpb if np.isfinite(merit.val_bpb) else None,
        baseline_bpb=baseline.merit.val_bpb,
        cost=merit.cost / baseline.merit.cost,
        stage=record.stage,
        facts=tuple(facts_of(record, folder)),
    )


def facts_of(record: Record, folder: Path) -> list[str]:
    """What a candidate's telemetry says, in sentences."""
    columns = read_telemetry(folder, record.id, SCREENED)
    if columns is None or not len(columns["loss"]):
        return []
    steps = len(columns["loss"])
    places = [0, steps // 4, steps // 2, steps - 1]

    def course(name: str) -> str:
        return ", ".join(f"{columns[name][i]:.3g}" for i in places)

    at = ", ".join(str(i) for i in places)
    facts = [
        f"training loss in nats at steps {at}: {course('loss')}",
        f"gradient norm there: {course('grad_norm')}",
        f"largest rise of the smoothed loss: {record.instability[0]:.3g} nats",
    ]
    if record.spec.control.enabled:
        facts.append(f"gate there: {course('gate')}")
        facts += [f"sensor {name} there: {course(name)}" for name in Sensors._fields]
    return facts


def failures_of(slot: str, known: State, folder: Path) -> list[prompts.Failure]:
    """Refusals and runs that died, of one slot, with their sources; a reason once, the latest last.

    An answer that is no edit is told as that alone: what was wrong with it quotes it, and would
    speak to whoever is asked next.
    """
    dead = {record.id: record for record in known.records if record.failure is not None}
    found: dict[str, prompts.Failure] = {}
    for entry in known.entries:
        if entry.slot != slot:
            continue
        if entry.outcome == proposals.REFUSED:
            message = _NOT_APPLIED if entry.reason == NO_EDIT else entry.message
            source = refused_source(folder, entry.number, slot)
            failure = prompts.Failure(entry.reason, message, source)
        elif entry.outcome == proposals.CANDIDATE and entry.candidate in dead:
            record = dead[entry.candidate]
            words = f"{record.failure['reason']} at step {record.failure['step']}"
            failure = prompts.Failure("dead", words, record.code["source"])
        else:
            continue
        found.pop(failure.reason, None)
        found[failure.reason] = failure
    return list(found.values())


def refused_source(folder: Path, number: int, slot: str) -> str | None:
    """What the last try of a refused proposal came to, normalised.

    None if that is no source, or one outside the language, which may hold words for whoever is
    asked next.
    """
    *_, last = sorted(proposals.folder_of(folder, number).glob("try-*")) or [Path()]
    try:
        source = read_plain(last / SOURCE).decode()
        language.check(source, slot)
    except (OSError, ValueError, Refused):
        return None
    return language.normalised(source)


def tried_of(slot: str, known: State) -> list[prompts.Trial]:
    """What was tried on a slot: the lines that came in, and what it brought."""
    trials = []
    for entry in known.entries:
        if entry.slot != slot or entry.outcome not in (proposals.CANDIDATE, proposals.SAME):
            continue
        record = known.record(entry.candidate)
        if entry.outcome == proposals.SAME:
            summary, outcome = "again", f"computes what {entry.candidate} computes"
        else:
            summary = added_lines(record.code["diff"])
            outcome = (
                f"died ({record.failure['reason']})"
                if record.failure
                else f"score {record.score:+.3f} (its parent {entry.parent}: "
                f"{known.record(entry.parent).score:+.3f})"
            )
        trials.append(prompts.Trial(f"p{entry.number:04d}", summary, outcome))
    return trials


def added_lines(diff: str) -> str:
    """The first lines that a diff adds, in one."""
    lines = [x[1:].strip() for x in diff.splitlines() if x.startswith("+") and x[:3] != "+++"]
    kept = [line for line in lines if line][:_LINES]
    return "`" + "; ".join(kept) + ("; ..." if len(lines) > _LINES else "") + "`"
