"""Question of a proposal: the parent's code and evidence, earlier failures and earlier trials."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.codegen.campaign.proposal import NO_EDIT, SOURCE, Question
from nanoevolve_jax.codegen.campaign.state import State, Target
from nanoevolve_jax.codegen.mutators import bandit, prompts
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.evidence.trajectories import SCREENED, read_telemetry
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.library import code_of
from nanoevolve_jax.execution.plain_files import read_plain
from nanoevolve_jax.policy.slots import built_in_source
from nanoevolve_jax.policy.spec import Sensors

_FAILURES, _TRIED, _LINES = 4, 12, 4
_STREAM = 9  # stream of random numbers
_NOT_APPLIED = "the answer could not be applied to the source as an edit"


def question_of(
    target: Target,
    known: State,
    *,
    config: ConfigDict,
    folder: Path,
    shapes: Sequence[tuple[int, int]],
) -> Question:
    """Returns the question of a proposal.

    Args:
      target: Parent and slot that the proposal edits.
      known: Settled state that the proposal may depend on.
      config: Full configuration.
      folder: Run folder.
      shapes: Shapes [inputs, outputs] of the model's matrices.
    """
    baseline, slot, scope = known.records[0], target.slot, config.codegen.scope
    if scope == "all":
        scope = "matrix" if slot == "direction" else "gating"

    def parent(id: str) -> prompts.Parent:
        record = known.record(id)
        source = source_of(folder, record, slot)
        return prompts.Parent(id, source, evidence_of(record, baseline, folder))

    edited = parent(target.parent)
    text = prompts.prompt(
        target.number,
        slot,
        scope,
        edited,
        config.codegen.max_cost,
        best=[other for other in map(parent, target.shown) if other.source != edited.source],
        failures=failures_of(slot, known, folder)[-_FAILURES:],
        tried=tried_of(slot, known)[-_TRIED:],
        shapes=sorted(set(shapes)) if slot == "direction" else (),
    )
    history = bandit.history_of(known.entries)
    provider = bandit.choose(names_of(config), history, [config.seed, _STREAM, target.number])
    return Question(slot, edited.source, provider, text)


def source_of(folder: Path, record: Record, slot: str) -> str:
    """Returns the source of a candidate's function for a slot.

    Args:
      folder: Run folder, whose library holds rewritten functions.
      record: Record of the candidate.
      slot: Name of the slot, one of `SLOTS`.
    """
    code = code_of(folder, record.code)
    function = code.of(slot) if code else None
    return function.source if function else built_in_source(slot)


def names_of(config: ConfigDict) -> list[str]:
    """Returns the names of the profiles in `config.codegen.ensemble`.

    Args:
      config: Full configuration.
    """
    return [name.strip() for name in config.codegen.ensemble.split(",") if name.strip()]


def evidence_of(record: Record, baseline: Record, folder: Path) -> prompts.Evidence:
    """Returns the measurements of a candidate.

    Args:
      record: Record of the candidate.
      baseline: Record of the baseline, which the candidate is compared with.
      folder: Run folder, which contains the candidate's telemetry.
    """
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
    """Returns phrases that describe the telemetry of a candidate; none if it has no telemetry.

    Args:
      record: Record of the candidate.
      folder: Run folder.
    """
    columns = read_telemetry(folder, record.id, SCREENED)
    if columns is None or not len(columns["loss"]):
        return []
    steps = len(columns["loss"])
    shown = [0, steps // 4, steps // 2, steps - 1]

    def course(name: str) -> str:
        return ", ".join(f"{columns[name][i]:.3g}" for i in shown)

    facts = [
        f"training loss in nats at steps {', '.join(map(str, shown))}: {course('loss')}",
        f"gradient norm there: {course('grad_norm')}",
        f"largest rise of the smoothed loss: {record.instability[0]:.3g} nats",
    ]
    if record.spec.control.enabled:
        facts.append(f"gate there: {course('gate')}")
        facts += [f"sensor {name} there: {course(name)}" for name in Sensors._fields]
    return facts


def failures_of(slot: str, known: State, folder: Path) -> list[prompts.Failure]:
    """Returns the latest failure of each reason, with its source. The newest one comes last.

    A failure is a refused proposal or a candidate whose training failed. If an answer was not an
    edit, its message is replaced, because the message quotes the answer and the quotation could
    instruct the next provider.

    Args:
      slot: Name of the slot.
      known: Settled state that the proposal may depend on.
      folder: Run folder.
    """
    dead = {record.id: record for record in known.records if record.failure is not None}
    failures: dict[str, prompts.Failure] = {}
    for entry in known.entries:
        if entry.slot != slot:
            continue
        if entry.outcome == proposals.REFUSED:
            message = _NOT_APPLIED if entry.reason == NO_EDIT else entry.message
            source = refused_source(folder, entry.number, slot)
            failure = prompts.Failure(entry.reason, message, source)
        elif entry.outcome == proposals.CANDIDATE and entry.candidate in dead:
            record = dead[entry.candidate]
            message = f"{record.failure['reason']} at step {record.failure['step']}"
            failure = prompts.Failure("dead", message, record.code["source"])
        else:
            continue
        failures.pop(failure.reason, None)
        failures[failure.reason] = failure
    return list(failures.values())


def refused_source(folder: Path, number: int, slot: str) -> str | None:
    """Returns the normalised source of the last try of a refused proposal.

    Args:
      folder: Run folder.
      number: Number of the proposal.
      slot: Name of the slot.

    Returns:
      The source, or None if there is none or if it is not in the language. The text of such a
      source could instruct the next provider.
    """
    *_, last = sorted(proposals.folder_of(folder, number).glob("try-*")) or [Path()]
    try:
        source = read_plain(last / SOURCE).decode()
        language.check(source, slot)
    except (OSError, ValueError, Refused):
        return None
    return language.normalised(source)


def tried_of(slot: str, known: State) -> list[prompts.Trial]:
    """Returns the earlier trials of a slot, with the lines that each added and its outcome.

    Args:
      slot: Name of the slot.
      known: Settled state that the proposal may depend on.
    """
    trials = []
    for entry in known.entries:
        if entry.slot != slot or entry.outcome not in (proposals.CANDIDATE, proposals.SAME):
            continue
        record = known.record(entry.candidate)
        if entry.outcome == proposals.SAME:
            summary, outcome = "again", f"computes what {entry.candidate} computes"
        else:
            summary = added_lines(record.code["diff"])
            parent = known.record(entry.parent)
            outcome = f"score {record.score:+.3f} (its parent {parent.id}: {parent.score:+.3f})"
            if record.failure:
                outcome = f"died ({record.failure['reason']})"
        trials.append(prompts.Trial(f"p{entry.number:04d}", summary, outcome))
    return trials


def added_lines(diff: str) -> str:
    """Returns the first lines that a unified diff adds, joined into one line.

    Args:
      diff: Unified diff.
    """
    lines = [x[1:].strip() for x in diff.splitlines() if x.startswith("+") and x[:3] != "+++"]
    kept = [line for line in lines if line][:_LINES]
    return "`" + "; ".join(kept) + ("; ..." if len(lines) > _LINES else "") + "`"
