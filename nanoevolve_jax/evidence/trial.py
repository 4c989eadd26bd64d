"""A trial: confirms a candidate and, after a win, attributes its gain and tries it elsewhere."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence import attribution
from nanoevolve_jax.evidence.attribution import attribute
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.confirmation import (
    WIN,
    Log,
    Study,
    confirm,
    describe_power,
    loosened,
    power_results,
    rules_of,
)
from nanoevolve_jax.evidence.documents import ExportResult, TrialResult
from nanoevolve_jax.evidence.ledger import Confirmation
from nanoevolve_jax.evidence.levels import required_seeds
from nanoevolve_jax.evidence.seeds import Stage, confirmation_seeds
from nanoevolve_jax.evidence.transfer import transfer
from nanoevolve_jax.evidence.verdict import Unattributed, Verdict, judge
from nanoevolve_jax.evidence.work import Call, DryRuns, total_steps
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.settings import make_baseline
from nanoevolve_jax.policy.spec import OptimizerSpec

ExportCheck = Callable[[Arm], ExportResult]
UNTIL = ("confirm", "attribute", "transfer")


class Trial(NamedTuple):
    """A finished trial."""

    parts: TrialResult
    verdict: Verdict
    gates: np.ndarray | None  # float32[pairs, steps], the candidate's; rows of NaN: run failed
    against: str  # id of the reference that the parts describe


def _ignore(value: object) -> None:
    del value


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a trial is carried out.

    Attributes:
      slot: Seeds and fold that the ledger gave out for it.
      calibration: Calibration of the evaluation.
      check_export: Compares a policy with its exported file; None skips this.
      until: Last stage after a win, one of `UNTIL`.
      on_outcome: Takes the outcome of the confirmation as soon as it is decided.
      on_planned: Takes the number of candidate-steps that are planned, once there are more.
      log: Takes one line for the user.
    """

    slot: Confirmation
    calibration: Calibration
    check_export: ExportCheck | None = None
    until: str = UNTIL[-1]
    on_outcome: Callable[[str], None] = _ignore
    on_planned: Callable[[int], None] = _ignore
    log: Log = _ignore


def run(bench: Bench, candidate: Arm, references: Sequence[Arm], protocol: Protocol) -> Trial:
    """Runs a trial.

    Args:
      bench: Where the arms are trained.
      candidate: The candidate.
      references: Arms to beat: the tuned baseline, and the best control if it scored better.
      protocol: How the trial is carried out.
    """
    slot, calibration, log = protocol.slot, protocol.calibration, protocol.log
    rules = rules_of(bench.config, slot.confirmations)
    looser = loosened(rules)
    if looser:
        log(f"exploratory, because rules are looser than the protocol's: {', '.join(looser)}")
    power = power_results(calibration, rules)
    log(describe_power(power, calibration.sigma))
    study = Study(bench, slot, calibration.sigma, log)
    arms, confirmation, runs = confirm(study, candidate, references)
    protocol.on_outcome(confirmation["outcome"])
    won = confirmation["outcome"] == WIN
    verdict = judge(Unattributed.NOT_ATTRIBUTED if won else Unattributed.NOT_CONFIRMED)
    parts = TrialResult(
        power=power,
        confirmation=confirmation,
        exploratory=slot.exploratory or bool(looser),
        fold=slot.fold,
        seeds=list(slot.seeds[: confirmation["pairs"]]),
        arms=arms.to_json(bench),
        phases=None,
        attribution=None,
        transfer=None,
        export=None,
    )
    if won and protocol.until != "confirm":
        pairs = required_seeds(confirmation["test"]["mean"] or 0.0, calibration.paired_sigma)
        planned = dry_run(bench.config, len(references), pairs)
        protocol.on_planned(total_steps([*planned.confirmation, *planned.after_win]))
        verdict, parts["attribution"], runs = attribute(study, arms, rules.seeds)
    if won and protocol.until == "transfer":
        log(f"transfer: {pairs} pairs at 95 % of the compute, fixed from the gain and the noise")
        parts["transfer"] = transfer(study, arms, pairs)
        parts["export"] = protocol.check_export and protocol.check_export(candidate)
    if candidate.spec.control.enabled:
        parts["phases"] = finite_or_null(attribution.phases(bench, runs, candidate.spec))
    return Trial(parts, verdict, attribution.gates(bench, runs), arms.baseline.id)


# The plan ------------------------------------------------------------------------------------


class PlannedTrial(NamedTuple):
    """What a trial asks of the engine."""

    confirmation: list[Call]
    after_win: list[Call]


def dry_run(config: ConfigDict, references: int = 1, cheaper_pairs: int = 0) -> PlannedTrial:
    """Counts the runs of a trial that needs both looks and then wins, without training.

    A range of learning rates whose edge is best is extended, as is a reference's range that does
    not reach the candidate's step sizes; these ask for more runs.

    Args:
      config: Full configuration.
      references: Number of references that the candidate has to beat.
      cheaper_pairs: Pairs at 95 % of the compute; 0: `transfer.seeds`, because the number follows
        from a gain that is not known yet.
    """
    runs = DryRuns(config)
    bench, seeds = Bench(config, runs), confirmation_seeds(Stage.CONFIRM, config.seed, 0)
    slot = Confirmation(0, "", "", 2, tuple(seeds), False, 1, None)
    study = Study(bench, slot, 1.0, _ignore)
    decay = config.recipe.weight_decay
    spec = make_baseline(config)
    baselines = [Arm(f"{i}", spec, {"weight_decay": decay + i}) for i in range(references)]
    arms = confirm(study, Arm("candidate", _gated(spec), {}), baselines).arms
    confirmation, runs.calls = runs.calls, []
    attribute(study, arms, rules_of(config, 1).seeds)
    transfer(study, arms, cheaper_pairs or config.transfer.seeds)
    return PlannedTrial(confirmation, runs.calls)


def _gated(spec: OptimizerSpec) -> OptimizerSpec:
    """Returns a policy with a gate and the step sizes of a spec that has none.

    It differs from the spec in more than the gate, so that its placebos are not the baseline.
    """
    poles = {
        name: getattr(spec.control, name)._replace(update_multiplier=spec.update_multiplier)
        for name in ("aggressive", "conservative")
    }
    return spec._replace(
        nesterov=1 - spec.nesterov, control=spec.control._replace(enabled=1, **poles)
    )
