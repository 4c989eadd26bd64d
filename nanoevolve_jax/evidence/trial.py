"""One confirmation, from its power to its verdict: the runs, and the document they leave."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence import attribution, transfer
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.comparison import (
    LR_FACTORS,
    LR_STAGE,
    Arm,
    Bench,
    StepSizes,
    mean_curve,
    steps_to,
)
from nanoevolve_jax.evidence.confirmation import (
    CONTINUE,
    NULL,
    WIN,
    ConfirmationRules,
    Decision,
    decide,
    loosened,
    minimum_detectable_effect,
    power,
    standing,
)
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.ledger import Confirmation
from nanoevolve_jax.evidence.levels import required_seeds
from nanoevolve_jax.evidence.runs import Run, bpb
from nanoevolve_jax.evidence.statistics import paired_test
from nanoevolve_jax.evidence.verdict import STEP_SHARE, Verdict, best_constants, judge, step_share
from nanoevolve_jax.evidence.work import Call, call, total_steps
from nanoevolve_jax.execution.job import job_to_json
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.exports.agreement import Agreement, Check, check_optax
from nanoevolve_jax.exports.source import source_of
from nanoevolve_jax.policy.certified import CertificateError

Log = Callable[[str], None]
_TEST = "confirm: test"  # stage of `runs.jsonl`


class Sides(NamedTuple):
    """What is compared, each arm at its own best learning rate."""

    winner: Arm
    baseline: Arm
    cost_ratio: float  # FLOPs of the winner's step over the baseline's


def rules_of(config: ConfigDict, confirmations: int) -> ConfirmationRules:
    """The rules of a config, for a campaign with so many confirmations that count."""
    own = {name: config.confirm[name] for name in ConfirmationRules._fields[:-1]}
    return ConfirmationRules(**own, confirmations=confirmations)


def say_power(calibration: Calibration, rules: ConfirmationRules, log: Log) -> dict[str, float]:
    """Says, before any run, what this confirmation could find.

    Twins that share a seed stay close. Arms at learning rates of their own may part like runs of
    different seeds; what sigma is, a calibration knows only within an interval, so for them it is
    taken at its upper end. Neither figure is a bound: the pairs themselves show how they scatter.
    """
    found = {}
    for name, paired in (
        ("twins", calibration.paired_sigma / calibration.sigma),
        ("strangers", math.sqrt(2.0) * calibration.sigma_interval[1] / calibration.sigma),
    ):
        found[name] = {
            "paired_sigma_in_sigma": paired,
            "power_at_one_sigma": power(1.0, paired, rules),
            "minimum_detectable_effect_in_sigma": minimum_detectable_effect(paired, rules),
        }
    twins, strangers = found["twins"], found["strangers"]
    log(
        f"power: a true gain of one sigma ({calibration.sigma:.4f} bpb) wins with probability "
        f"{twins['power_at_one_sigma']:.2f} if the arms scatter like twins "
        f"({twins['paired_sigma_in_sigma']:.2f} sigma), {strangers['power_at_one_sigma']:.2f} if "
        f"like strangers ({strangers['paired_sigma_in_sigma']:.2f} sigma); 80 % is reached at "
        f"{twins['minimum_detectable_effect_in_sigma']:.2f} and "
        f"{strangers['minimum_detectable_effect_in_sigma']:.2f} sigma"
    )
    return found


def planned_calls(config: ConfigDict, references: int = 1) -> list[Call]:
    """What a confirmation asks of the engine, if both looks are needed.

    A range of learning rates whose edge is best is extended, as is a reference's that does not
    reach the candidate's, which asks for more.

    Args:
      config: whole.
      references: that the candidate has to beat.
    """
    confirm, arms = config.confirm, 1 + references
    rates = call(LR_STAGE, len(LR_FACTORS) * confirm.lr_seeds, confirm.steps)
    looks = (confirm.first_seeds, confirm.seeds - confirm.first_seeds)
    return arms * [rates] + [call(_TEST, arms * pairs, confirm.steps) for pairs in looks]


def planned_after_win(config: ConfigDict, cheaper_seeds: int) -> list[Call]:
    """What attribution and transfer ask of the engine.

    Args:
      config: whole.
      cheaper_seeds: pairs at 95 % of the compute; `levels.required_seeds` says how many.
    """
    return attribution.planned_calls(config) + transfer.planned_calls(config, cheaper_seeds)


def arms_to_json(bench: Bench, sides: Sides) -> dict[str, Any]:
    """Both arms as they were tested, so that a replay needs nothing else."""
    return {
        name: job_to_json(bench.job(arm, 0, 0))["candidate"]
        for name, arm in (("baseline", sides.baseline), ("winner", sides.winner))
    }


class _Comparison(NamedTuple):
    """The candidate against one reference."""

    reference: Arm
    learning_rates: dict[str, Any]
    runs: list[Run]  # of the reference
    decision: Decision


def _hardest(comparisons: Sequence[_Comparison]) -> _Comparison:
    """The comparison that the candidate does worst in."""
    return min(comparisons, key=lambda one: standing(one.decision))


def confirm(
    bench: Bench,
    winner: Arm,
    references: Sequence[Arm],
    consumed: Confirmation,
    sigma: float,
    costs: Mapping[str, float],
    log: Log,
) -> tuple[Sides, dict[str, Any], dict[str, list[Run]]]:
    """Chooses all learning rates, then tests at one or two looks.

    The candidate has to beat every reference, each at the best of learning rates that reach the
    candidate's own. All are tested at the same level, for to pass several tests is no easier than
    to pass one. What is told is the comparison that the candidate does worst in. A candidate that
    fails at every learning rate is not tested: it has failed.

    Returns:
      (the arms as they were tested, the part `confirmation` of the card, the runs of both arms).

    Raises:
      EvidenceError: if a reference fails at every learning rate, or on a pair.
    """

    def at_best_lr(arm: Arm, reach: StepSizes | None = None) -> tuple[Arm, dict[str, Any]]:
        arm, found = bench.pick_lr(arm, reach)
        chosen = found["chosen"]
        log(f"learning rate of {arm.id}: " + (f"x{chosen:.3g}" if chosen else "fails at all"))
        return arm, found

    winner, winner_lr = at_best_lr(winner)
    untried = Decision(NULL, "it fails at every learning rate tried", paired_test([]))
    comparisons = []
    for reference in references:
        arm, found = at_best_lr(reference, bench.step_sizes(winner))
        if found["chosen"] is None:
            raise EvidenceError(
                f"the baseline {arm.id} fails at every learning rate tried; "
                "allowed: a baseline that trains, from a new calibration"
            )
        comparisons.append(_Comparison(arm, found, [], untried))
    rules = rules_of(bench.config, consumed.confirmations)
    looks = (rules.first_seeds, rules.seeds)
    if winner_lr["chosen"] is None:  # nothing is left to test
        looks = ()
    count, winner_runs = 0, []
    for count in looks:
        jobs = [
            bench.job(arm, seed, consumed.fold)
            for arm in (winner, *(one.reference for one in comparisons))
            for seed in consumed.seeds[:count]
        ]
        made = bench.runs.run(jobs, _TEST)
        winner_runs, *others = (made[i : i + count] for i in range(0, len(made), count))
        for i, (one, runs) in enumerate(zip(comparisons, others, strict=True)):
            decision = decide(bpb(runs), bpb(winner_runs), sigma, rules)
            comparisons[i] = one._replace(runs=runs, decision=decision)
            test = decision.test
            log(
                f"look at {count} pairs with {one.reference.id}: mean gain {test.mean:+.4f} bpb "
                f"({test.mean / sigma:+.2f} sigma), p {test.p:.3g}: {decision.outcome}, "
                f"{decision.reason}"
            )
        if _hardest(comparisons).decision.outcome != CONTINUE:
            break
    told = _hardest(comparisons)
    decision, runs = told.decision, {"baseline": told.runs, "winner": winner_runs}
    cost_ratio = costs[winner.id] / costs[told.reference.id]
    return (
        Sides(winner, told.reference, cost_ratio),
        {
            "outcome": decision.outcome,
            "reason": decision.reason,
            "pairs": count,
            "test": finite_or_null(decision.test),
            "gain_in_sigma": finite_or_null(decision.test.mean / sigma),
            "paired_sd_in_sigma": finite_or_null(decision.test.sd / sigma),
            "rules": rules._asdict(),
            "loosened": loosened(rules),
            "learning_rates": {"baseline": told.learning_rates, "winner": winner_lr},
            "baseline_bpb": finite_or_null(bpb(told.runs)),
            "winner_bpb": finite_or_null(bpb(winner_runs)),
            "others": [_to_json(one) for one in comparisons if one is not told],
            "to_target": to_target(runs, cost_ratio),
        },
        runs,
    )


def _to_json(comparison: _Comparison) -> dict[str, Any]:
    """A comparison that is not the one told."""
    return {
        "id": comparison.reference.id,
        "outcome": comparison.decision.outcome,
        "reason": comparison.decision.reason,
        "test": finite_or_null(comparison.decision.test),
        "learning_rates": comparison.learning_rates,
        "bpb": finite_or_null(bpb(comparison.runs)),
    }


def to_target(runs: Mapping[str, Sequence[Run]], cost_ratio: float) -> dict[str, Any] | None:
    """Steps and compute each arm takes to the baseline's mean final bpb.

    None if a run failed, or there is none.
    """
    if not all(runs.values()) or any(run.failure for arm in runs.values() for run in arm):
        return None
    curves = {name: mean_curve(arm) for name, arm in runs.items()}
    target = float(curves["baseline"][-1, 1])
    steps = {name: steps_to(curve, target) for name, curve in curves.items()}
    share = steps["winner"] and steps["winner"] / steps["baseline"]
    return {
        "bpb": target,
        "baseline_steps": steps["baseline"],
        "winner_steps": steps["winner"],
        "winner_steps_over_baseline": share,
        "winner_cost_over_baseline": share and share * cost_ratio,
    }


def attribute(
    bench: Bench, sides: Sides, consumed: Confirmation, pairs: int, log: Log
) -> tuple[Verdict, dict[str, Any], list[Run]]:
    """Runs placebos, and the perturbation panel where they leave sensing open.

    Returns:
      (verdict, the part `attribution` of the card, the winner's runs).
    """
    seeds = consumed.seeds[:pairs]
    winner_runs = bench.runs.run(
        [bench.job(sides.winner, seed, consumed.fold) for seed in seeds], "attribute: winner"
    )
    baseline_runs = bench.runs.run(
        [bench.job(sides.baseline, seed, consumed.fold) for seed in seeds], "attribute: baseline"
    )
    placebos = attribution.run_placebos(bench, sides.winner, seeds, consumed.fold)
    share = step_share(attribution.gates(bench, winner_runs))
    arrays = {
        "baseline": bpb(baseline_runs),
        "winner": bpb(winner_runs),
        "constants": placebos.constants,
        "schedule": placebos.schedule,
        "yoked": placebos.yoked,
    }
    if placebos.built_in is not None:
        arrays["built_in"] = placebos.built_in
    verdict, panel = judge(confirmed=True, **arrays), None
    log(f"the step explains {share:.0%} of the gate's variance; so far: {verdict.label}")
    if placebos.trajectory is not None and (share > STEP_SHARE or verdict.label != "sensing"):
        found = attribution.run_perturbations(
            bench, sides.winner, sides.baseline, placebos.trajectory, consumed
        )
        panel = {name: values.mean(1) for name, values in found._asdict().items()}
        verdict = judge(confirmed=True, **arrays, panel=panel)
        log(f"after the perturbation panel: {verdict.label}")
    return (
        verdict,
        {
            "pairs": pairs,
            "step_share": share,
            "donors": placebos.donors,
            "best_constants": best_constants(placebos.constants),
            "bpb": finite_or_null(arrays),
            "panel": panel
            and {
                "perturbations": list(attribution.PERTURBATIONS),
                "bpb": finite_or_null(found._asdict()),
            },
            "contrasts": finite_or_null(verdict.contrasts),
            "trajectory": finite_or_null(placebos.trajectory),
        },
        winner_runs,
    )


def transfer_tests(
    bench: Bench, sides: Sides, consumed: Confirmation, cheaper_seeds: int
) -> dict[str, Any]:
    """Levels 4 and 5: other learning rates and horizons, less compute, more width."""
    cells = transfer.run_cells(bench, sides.winner, sides.baseline, consumed)
    cheaper = transfer.run_cheaper(
        bench, sides.winner, sides.baseline, consumed, sides.cost_ratio, cheaper_seeds
    )
    wide = transfer.run_wider(bench, sides.winner, sides.baseline, consumed)
    return {
        "cells": {name: finite_or_null(cell._asdict()) for name, cell in cells.items()},
        "cheaper": finite_or_null(cheaper._asdict()),
        "wider": finite_or_null(wide._asdict()),
    }


def export_test(winner: Arm, check: Check, log: Log) -> dict[str, Any]:
    """Level 5: whether the policy, written as a file for optax, does what was trained.

    A file that cannot be compared, such as one that does not come to an end, does not agree: all
    runs are made by now, and code must not be able to keep its card from being written.

    Args:
      winner: the policy.
      check: compares a spec with the text of a file, given the policy's code.
      log: Callback that takes one line for the user.
    """
    source = source_of(winner.spec, "optax", winner.id, code=winner.code)
    try:
        found = check(winner.spec, source, winner.code)
    except CertificateError as error:
        log(f"export: {error}")
        found = Agreement(math.inf, math.inf, 0, 0, 0, 0)
    return found.to_json()


class Trial(NamedTuple):
    """What a trial found."""

    parts: dict[str, Any]  # of the card
    verdict: Verdict
    gates: np.ndarray | None  # float32[pairs, steps], the candidate's at its confirmation; NaN:
    # the run failed
    against: str  # id of the reference that its parts tell of


def run(
    bench: Bench,
    winner: Arm,
    references: Sequence[Arm],
    *,
    consumed: Confirmation,
    calibration: Calibration,
    costs: Mapping[str, float],
    until: str,
    finish: Callable[[str], None],
    expect: Callable[[int], None],
    log: Log,
    check: Check = check_optax,
) -> Trial:
    """Confirms a candidate and, after a win, attributes its gain and tries it elsewhere.

    Args:
      bench: where.
      winner: the candidate.
      references: what it has to beat: the tuned baseline, and the best control if it scored better.
      consumed: seeds and fold, already used up in the ledger.
      calibration: of the evaluation.
      costs: FLOPs of a step, of all arms by id.
      until: last stage after a win: confirm, attribute or transfer.
      finish: told the outcome as soon as it is known.
      expect: told how many candidate-steps there will be, once there are more.
      log: Callback that takes one line for the user.
      check: see `export_test`.
    """
    rules = rules_of(bench.config, consumed.confirmations)
    loose = loosened(rules)
    if loose:
        log(f"exploratory, for its rules are looser than the protocol's: {', '.join(loose)}")
    parts: dict[str, Any] = {"power": say_power(calibration, rules, log)}
    sides, confirmation, made = confirm(
        bench, winner, references, consumed, calibration.sigma, costs, log
    )
    finish(confirmation["outcome"])
    won = confirmation["outcome"] == WIN
    verdict = judge(confirmed=won)
    parts |= {
        "confirmation": confirmation,
        "exploratory": consumed.exploratory or bool(loose),
        "fold": consumed.fold,
        "seeds": list(consumed.seeds[: confirmation["pairs"]]),
        "arms": arms_to_json(bench, sides),
        "phases": None,
        "attribution": None,
        "transfer": None,
        "export": None,
    }
    winner_runs = made["winner"]
    if won and until != "confirm":
        count = required_seeds(confirmation["test"]["mean"], calibration.paired_sigma)
        calls = planned_calls(bench.config, len(references)) + planned_after_win(
            bench.config, count
        )
        expect(total_steps(calls))
        verdict, parts["attribution"], winner_runs = attribute(
            bench, sides, consumed, rules.seeds, log
        )
    if won and until == "transfer":
        log(f"transfer: {count} pairs at 95 % of the compute, fixed from the gain and the noise")
        parts["transfer"] = transfer_tests(bench, sides, consumed, count)
        parts["export"] = export_test(winner, check, log)
    if winner.spec.control.enabled:
        parts["phases"] = finite_or_null(attribution.phases(bench, winner_runs, winner.spec))
    return Trial(parts, verdict, attribution.gates(bench, winner_runs), sides.baseline.id)
