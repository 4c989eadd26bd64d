"""Confirmation: paired tests of a candidate against references, at two looks.

`decide` implements the rule, `power` computes the power of the rule, and `confirm` trains the runs.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from nanoevolve_jax.errors import apart, must
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.comparison import (
    Arm,
    Bench,
    mean_curve,
    steps_to,
)
from nanoevolve_jax.evidence.documents import (
    ConfirmationResult,
    OtherReference,
    PowerResult,
    PowerResults,
    RateSearch,
    TargetResult,
    TestedArms,
)
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.ledger import Confirmation
from nanoevolve_jax.evidence.runs import Run, bpb
from nanoevolve_jax.evidence.statistics import Floats, PairedTest, paired_test
from nanoevolve_jax.execution.job import candidate_to_json
from nanoevolve_jax.execution.json_files import finite_or_null

Log = Callable[[str], None]
Outcome = Literal["win", "null", "continue"]
WIN: Outcome = "win"
NULL: Outcome = "null"
CONTINUE: Outcome = "continue"
STAGE = "confirm: test"  # stage of `runs.jsonl`


# The rule ------------------------------------------------------------------------------------


class ConfirmationRules(NamedTuple):
    """The conditions for a win."""

    first_seeds: int = 8  # number of pairs at the first look
    first_p: float = 0.01  # largest p at the first look
    seeds: int = 20  # number of pairs at the second look
    p: float = 0.04  # largest p at the second look
    min_gain: float = 0.5  # smallest mean gain, in sigmas
    worst: float = 2.0  # sigmas by which the worst run may be worse than the baseline's worst
    confirmations: int = 1  # number of confirmations of the campaign that count; divides both p


_LOOSER_IF_LARGER = ("first_p", "p", "worst")
_LOOSER_IF_SMALLER = ("first_seeds", "seeds", "min_gain")


def rules_of(config: ConfigDict, confirmations: int) -> ConfirmationRules:
    """Returns the rules of a config.

    Args:
      config: Full configuration.
      confirmations: Number of confirmations of the campaign that count.
    """
    own = {name: config.confirm[name] for name in ConfirmationRules._fields[:-1]}
    return ConfirmationRules(**own, confirmations=confirmations)


def loosened(rules: ConfirmationRules) -> dict[str, float]:
    """Returns the rules that are looser than those of the protocol.

    A win under looser rules does not count.

    Args:
      rules: Rules of a campaign.

    Returns:
      Values of the looser rules by name.
    """
    usual = ConfirmationRules()
    larger = {name for name in _LOOSER_IF_LARGER if getattr(rules, name) > getattr(usual, name)}
    smaller = {name for name in _LOOSER_IF_SMALLER if getattr(rules, name) < getattr(usual, name)}
    return {name: x for name, x in rules._asdict().items() if name in larger | smaller}


class Decision(NamedTuple):
    """The decision at a look."""

    outcome: Outcome
    reason: str
    test: PairedTest


def decision_rank(decision: Decision) -> tuple[int, float]:
    """Returns a key that sorts decisions of the same look from worst to best for the candidate.

    If a candidate has to beat several references, the lowest decision applies.
    """
    return (NULL, CONTINUE, WIN).index(decision.outcome), decision.test.mean


def decide(baseline: Floats, candidate: Floats, sigma: float, rules: ConfirmationRules) -> Decision:
    """Decides at a look, which takes place after `rules.first_seeds` or `rules.seeds` pairs.

    Args:
      baseline: Bits per byte of the baseline at its best learning rate; float[n], NaN for a failed
        run.
      candidate: Bits per byte of the candidate on the same seeds; float[n].
      sigma: Standard deviation of the baseline between seeds, in bpb.
      rules: Rules of the campaign.

    Returns:
      The decision, its reason and the paired test.

    Raises:
      ValueError: If there is no look after n pairs.
      EvidenceError: If a run of the baseline failed, because then there is nothing to compare with.
    """
    n = len(baseline)
    if n not in (rules.first_seeds, rules.seeds) or len(candidate) != n:
        raise ValueError(must("number of pairs", f"be {rules.first_seeds} or {rules.seeds}", n))
    baseline, candidate = np.asarray(baseline, float), np.asarray(candidate, float)
    if not np.all(np.isfinite(baseline)):
        failed = int(np.flatnonzero(~np.isfinite(baseline))[0])
        raise EvidenceError(
            f"the baseline's run on pair {failed + 1} failed; make a new calibration whose "
            "baseline trains on every seed"
        )
    test = paired_test(baseline - candidate)
    if not np.all(np.isfinite(candidate)):
        failed = int(np.flatnonzero(~np.isfinite(candidate))[0])
        return Decision(NULL, f"its run on pair {failed + 1} failed", test)
    last = n == rules.seeds
    if test.mean <= 0:
        return Decision(NULL, "its mean gain is not positive", test)
    limit = (rules.p if last else rules.first_p) / rules.confirmations
    falls_short = None
    if test.p > limit:
        p, most = apart(test.p, limit)
        falls_short = f"p is {p}, above {most}"
    elif test.mean < rules.min_gain * sigma:
        gain, least = apart(test.mean / sigma, rules.min_gain, 2, "f")
        falls_short = f"its gain is {gain} sigma, below {least}"
    elif candidate.max() > baseline.max() + rules.worst * sigma:
        falls_short = "its worst run is too far below the baseline's worst"
    if falls_short is None:
        return Decision(WIN, f"p is {test.p:.3g} after {n} pairs", test)
    return Decision(NULL if last else CONTINUE, falls_short, test)


# Power ---------------------------------------------------------------------------------------


@functools.lru_cache
def _standard_pairs(rules: ConfirmationRules, campaigns: int) -> np.ndarray:
    """Returns standard normal noise, float64[campaigns, seeds]."""
    return np.random.default_rng(0).standard_normal((campaigns, rules.seeds))


def power(
    effect: float, paired_sigma: float, rules: ConfirmationRules, campaigns: int = 4000
) -> float:
    """Returns the probability that a candidate with a given true gain wins.

    The two looks are simulated. The condition on the worst run is left out, because it depends on
    noise that both arms share.

    Args:
      effect: True mean gain, in sigmas.
      paired_sigma: Standard deviation of the gain of a pair, in sigmas.
      rules: Rules of the campaign.
      campaigns: Number of simulated campaigns.

    Returns:
      Probability from 0 to 1.
    """
    gains = effect + paired_sigma * _standard_pairs(rules, campaigns)
    first = gains[:, : rules.first_seeds]

    def wins(part: np.ndarray, p: float) -> np.ndarray:
        n = part.shape[1]
        mean, sd = part.mean(1), part.std(1, ddof=1)
        limit = stats.t.isf(p / rules.confirmations, n - 1)
        return (mean / (sd / math.sqrt(n)) >= limit) & (mean >= rules.min_gain)

    early = wins(first, rules.first_p)
    late = (first.mean(1) > 0) & wins(gains, rules.p)
    return float(np.mean(early | late))


def minimum_detectable_effect(
    paired_sigma: float, rules: ConfirmationRules, wanted: float = 0.8
) -> float:
    """Returns the smallest true gain that wins with a given probability.

    Args:
      paired_sigma: Standard deviation of the gain of a pair, in sigmas.
      rules: Rules of the campaign.
      wanted: Probability of a win.

    Returns:
      Gain in sigmas, a multiple of 0.05; inf if it is at least 10.
    """
    effects = np.arange(0.05, 10.0, 0.05)
    reached = (effect for effect in effects if power(effect, paired_sigma, rules) >= wanted)
    return float(next(reached, math.inf))


def power_results(calibration: Calibration, rules: ConfirmationRules) -> PowerResults:
    """Returns the power of a confirmation under two assumptions about the noise of pairs.

    The field `twins` assumes the noise of the baseline and a close variant on shared seeds. The
    field `strangers` assumes that both runs of a pair are independent, with a standard deviation at
    the upper end of sigma's interval, because arms with different learning rates may differ like
    runs on different seeds. Neither is a bound. The actual noise is measured on the pairs.

    Args:
      calibration: Calibration of the evaluation.
      rules: Rules of the campaign.
    """

    def result(paired: float) -> PowerResult:
        return PowerResult(
            paired_sigma_in_sigma=paired,
            power_at_one_sigma=power(1.0, paired, rules),
            minimum_detectable_effect_in_sigma=finite_or_null(
                minimum_detectable_effect(paired, rules)
            ),
        )

    return PowerResults(
        twins=result(calibration.paired_sigma / calibration.sigma),
        strangers=result(math.sqrt(2.0) * calibration.sigma_interval[1] / calibration.sigma),
    )


def describe_power(results: PowerResults, sigma: float) -> str:
    """Describes the power of a confirmation in one line.

    Args:
      results: Power under both assumptions, see `power_results`.
      sigma: Standard deviation of the baseline between seeds, in bpb.
    """
    close, independent = results["twins"], results["strangers"]
    effects = [
        "more than 10" if effect is None else f"{effect:.2f}"
        for effect in (x["minimum_detectable_effect_in_sigma"] for x in (close, independent))
    ]
    return (
        f"power: a true gain of one sigma ({sigma:.4f} bpb) wins with probability "
        f"{close['power_at_one_sigma']:.2f} if the gains of pairs scatter by "
        f"{close['paired_sigma_in_sigma']:.2f} sigma, and {independent['power_at_one_sigma']:.2f} "
        f"if by {independent['paired_sigma_in_sigma']:.2f} sigma; for probability 0.8 a gain of "
        f"{effects[0]} or {effects[1]} sigma is needed"
    )


# The runs ------------------------------------------------------------------------------------


class Study(NamedTuple):
    """The resources of a confirmation, an attribution or a transfer."""

    bench: Bench  # config and runs of the comparison
    slot: Confirmation  # seeds and fold that the ledger allocated
    sigma: float  # standard deviation of the baseline between seeds, in bpb
    log: Log  # callback that takes one line for the user


class Arms(NamedTuple):
    """The two arms of a comparison, each at its own best learning rate."""

    winner: Arm
    baseline: Arm

    @property
    def cost_ratio(self) -> float:
        """FLOPs of the winner's step relative to the baseline's."""
        return self.winner.cost / self.baseline.cost

    def to_json(self, bench: Bench) -> TestedArms:
        """Returns both arms in the form that a card contains.

        Args:
          bench: Config and runs of the comparison.
        """
        steps = bench.config.confirm.steps
        baseline, winner = (
            candidate_to_json(bench.candidate(arm, steps)) for arm in (self.baseline, self.winner)
        )
        return cast(TestedArms, {"baseline": baseline, "winner": winner})


class Confirmed(NamedTuple):
    """A finished confirmation."""

    arms: Arms  # as they were tested
    result: ConfirmationResult
    winner_runs: list[Run]


class _Comparison(NamedTuple):
    """The comparison of the candidate with a reference."""

    reference: Arm
    rates: RateSearch  # search for the learning rate of the reference
    runs: list[Run]  # runs of the reference
    decision: Decision


def confirm(study: Study, candidate: Arm, references: Sequence[Arm]) -> Confirmed:
    """Chooses all learning rates, then tests a candidate at one or two looks.

    The candidate has to beat every reference. The range of learning rates of a reference includes
    the candidate's step sizes. All tests have the same level, because requiring every test to pass
    cannot raise the false-positive rate. A candidate that fails at every learning rate is not
    tested.

    Args:
      study: Resources of the confirmation.
      candidate: Candidate to confirm.
      references: Arms that the candidate has to beat.

    Returns:
      The comparison with the worst decision for the candidate, and the runs of the candidate.

    Raises:
      EvidenceError: If a reference fails at every learning rate, or in one of the pairs.
    """
    bench, slot, sigma, log = study
    rules = rules_of(bench.config, slot.confirmations)
    candidate, candidate_rates = bench.pick_lr(candidate)
    log(_rate_line(candidate, candidate_rates))
    untested = Decision(NULL, "it fails at every learning rate tried", paired_test([]))
    comparisons = []
    for reference in references:
        arm, rates = bench.pick_lr(reference, bench.step_sizes(candidate))
        log(_rate_line(arm, rates))
        if rates["chosen"] is None:
            raise EvidenceError(
                f"the baseline {arm.id} fails at every learning rate tried; make a new "
                "calibration whose baseline trains"
            )
        comparisons.append(_Comparison(arm, rates, [], untested))
    count = 0
    runs: list[Run] = []
    for count in (rules.first_seeds, rules.seeds) if candidate_rates["chosen"] is not None else ():
        comparisons, runs = _look(study, candidate, comparisons, count, rules)
        if _hardest(comparisons).decision.outcome != CONTINUE:
            break
    hardest = _hardest(comparisons)
    arms, decision = Arms(candidate, hardest.reference), hardest.decision
    result = ConfirmationResult(
        outcome=decision.outcome,
        reason=decision.reason,
        pairs=count,
        test=finite_or_null(decision.test),
        gain_in_sigma=finite_or_null(decision.test.mean / sigma),
        paired_sd_in_sigma=finite_or_null(decision.test.sd / sigma),
        rules=finite_or_null(rules),
        loosened=loosened(rules),
        learning_rates={"baseline": hardest.rates, "winner": candidate_rates},
        baseline_bpb=finite_or_null(bpb(hardest.runs)),
        winner_bpb=finite_or_null(bpb(runs)),
        others=[_other(comparison) for comparison in comparisons if comparison is not hardest],
        to_target=to_target({"baseline": hardest.runs, "winner": runs}, arms.cost_ratio),
    )
    return Confirmed(arms, result, runs)


def _look(
    study: Study,
    candidate: Arm,
    comparisons: Sequence[_Comparison],
    count: int,
    rules: ConfirmationRules,
) -> tuple[list[_Comparison], list[Run]]:
    """Trains the first `count` pairs of every comparison and decides on each comparison.

    Returns:
      The comparisons with their decisions, and the runs of the candidate.
    """
    bench, slot, sigma, log = study
    arms = [candidate, *(comparison.reference for comparison in comparisons)]
    jobs = [bench.job(arm, seed, slot.fold) for arm in arms for seed in slot.seeds[:count]]
    runs = bench.runs.run(jobs, STAGE)
    own, *others = (runs[i : i + count] for i in range(0, len(runs), count))
    decided = []
    for comparison, theirs in zip(comparisons, others, strict=True):
        decision = decide(bpb(theirs), bpb(own), sigma, rules)
        test = decision.test
        log(
            f"look at {count} pairs with {comparison.reference.id}: mean gain {test.mean:+.4f} bpb "
            f"({test.mean / sigma:+.2f} sigma), p {test.p:.3g}: {decision.outcome}, "
            f"{decision.reason}"
        )
        decided.append(comparison._replace(runs=theirs, decision=decision))
    return decided, own


def _hardest(comparisons: Sequence[_Comparison]) -> _Comparison:
    """Returns the comparison with the worst decision for the candidate."""
    return min(comparisons, key=lambda comparison: decision_rank(comparison.decision))


def _rate_line(arm: Arm, rates: RateSearch) -> str:
    chosen = rates["chosen"]
    return f"learning rate of {arm.id}: " + (f"x{chosen:.3g}" if chosen else "fails at all")


def _other(comparison: _Comparison) -> OtherReference:
    return OtherReference(
        id=comparison.reference.id,
        outcome=comparison.decision.outcome,
        reason=comparison.decision.reason,
        test=finite_or_null(comparison.decision.test),
        learning_rates=comparison.rates,
        bpb=finite_or_null(bpb(comparison.runs)),
    )


def to_target(runs: Mapping[str, Sequence[Run]], cost_ratio: float) -> TargetResult | None:
    """Returns the steps and compute that each arm needs for the baseline's mean final bpb.

    Args:
      runs: Runs by arm, with the keys `baseline` and `winner`.
      cost_ratio: FLOPs of the winner's step relative to the baseline's.

    Returns:
      Steps and relative compute, or None if a run failed or there are no runs.
    """
    if not all(runs.values()) or any(run.failure for arm in runs.values() for run in arm):
        return None
    curves = {name: mean_curve(arm) for name, arm in runs.items()}
    target = float(curves["baseline"][-1, 1])
    baseline, winner = (steps_to(curves[name], target) for name in ("baseline", "winner"))
    assert baseline is not None  # its last point is the target
    share = winner and winner / baseline
    return TargetResult(
        bpb=target,
        baseline_steps=baseline,
        winner_steps=winner,
        winner_steps_over_baseline=share,
        winner_cost_over_baseline=share and share * cost_ratio,
    )
