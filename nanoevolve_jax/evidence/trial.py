"""A trial: the confirmation of a candidate and, after a win, its attribution and transfer."""

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
    gates: np.ndarray | None  # the candidate's gate, float32[pairs, steps]; NaN for failed runs
    against: str  # id of the reference to which the parts refer


def _ignore(value: object) -> None:
    del value


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings of a trial.

    Attributes:
      slot: Seeds and fold that the ledger allocated to the trial.
      calibration: Calibration of the evaluation.
      check_export: Function that compares a policy with its exported file. None skips the
        comparison.
      until: Last stage after a win, one of `UNTIL`.
      on_outcome: Callback that takes the outcome of the confirmation as soon as it is decided.
      on_planned: Callback that takes the planned number of candidate-steps, called after a win.
      log: Callback that takes one line for the user.
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
      bench: Config and runs of the comparison.
      candidate: Candidate to confirm.
      references: Arms that the candidate has to beat. These are the tuned baseline and, if a
        control or retuned baseline scored better, that arm.
      protocol: Settings of the trial.

    Returns:
      The finished trial.
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
    """The calls of a trial to the engine."""

    confirmation: list[Call]
    after_win: list[Call]  # calls of attribution and transfer


def dry_run(config: ConfigDict, references: int = 1, cheaper_pairs: int = 0) -> PlannedTrial:
    """Plans the runs of a trial that needs both looks and then wins, without training.

    A trial needs more runs if a range of learning rates has to be extended. This happens if the
    best factor is at an edge, or if a reference does not reach the candidate's step sizes.

    Args:
      config: Full configuration.
      references: Number of references that the candidate has to beat.
      cheaper_pairs: Number of pairs at 95 % of the compute. It depends on the measured gain, so
        `config.transfer.seeds` replaces a value of 0.

    Returns:
      Calls to the engine.
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
    """Returns a policy with a gate and the step sizes of a spec without a gate.

    It also differs in `nesterov`, so that its placebos are different from the baseline.
    """
    poles = {
        name: getattr(spec.control, name)._replace(update_multiplier=spec.update_multiplier)
        for name in ("aggressive", "conservative")
    }
    return spec._replace(
        nesterov=1 - spec.nesterov, control=spec.control._replace(enabled=1, **poles)
    )
