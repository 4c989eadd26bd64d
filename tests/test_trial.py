"""A trial from its power to its verdict, on simulated runs."""

import math

import numpy as np
import pytest
from benches import arm, card_of, lr_factor, make_bench, make_slot, make_trial
from certified_code import BLEND, certify, code_of

from nanoevolve_jax.evidence.card import is_win
from nanoevolve_jax.evidence.comparison import LR_STAGE
from nanoevolve_jax.evidence.confirmation import ConfirmationRules, loosened
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.levels import no_win
from nanoevolve_jax.evidence.page import sentence, to_markdown
from nanoevolve_jax.evidence.trial import dry_run
from nanoevolve_jax.evidence.verdict import CONSTANTS, REWRITTEN, SENSING, Unattributed
from nanoevolve_jax.evidence.work import total_runs
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat", NANOCHAT)
CONTROL = arm("g001c00", NANOCHAT._replace(update_multiplier=0.9))
SEEDS = make_slot().seeds


def is_policy(job):
    return bool(job.candidate.spec.control.enabled)


def noisy(job, *own):
    """Returns the noise of a job, most of which it shares with other arms of its seed."""
    shared, mine = (np.random.default_rng([job.seed, *key]) for key in ((), own))
    return shared.normal(0, 0.01) + mine.normal(0, 0.002)


def world(gain=0.05, held=0.0, fails=lambda job: False, more=lambda job: 0.0, **changes):
    """Returns a bench in which the policy gains, with another gain if its gate is replaced.

    Args:
      gain: Gain of the policy in bpb; sigma is 0.01.
      held: Gain of the policy in bpb if its gate is replaced.
      fails: Function that returns whether a job fails.
      more: Function that returns an additional loss of a job in bpb.
      **changes: Fields of the config, or `gate_of`, a function from a job to the policy's gate.

    Returns:
      The bench.
    """

    def bpb_of(job):
        if fails(job):
            return math.nan
        loss = 2.0 + noisy(job, is_policy(job), job.gate is not None) + more(job)
        mine = gain if job.gate is None else held
        return loss + 0.1 * math.log2(lr_factor(bench, job)) ** 2 - is_policy(job) * mine

    bench = make_bench(bpb_of, **changes)
    return bench


def own_gate(job):
    """Returns a gate that differs on every seed."""
    return np.random.default_rng(job.seed).random(job.steps)


# Runs that fail


def test_a_candidate_that_fails_at_every_learning_rate_is_not_tested_and_has_failed():
    bench = world(fails=is_policy)
    tried, outcomes = make_trial(bench, POLICY, BASELINE)
    confirmation = tried.parts["confirmation"]
    assert outcomes == ["null"] == [confirmation["outcome"]]
    assert confirmation["pairs"] == 0 and confirmation["learning_rates"]["winner"]["chosen"] is None
    assert bench.runs.of("confirm: test") == []
    card = card_of(tried, bench, POLICY, BASELINE)
    assert "it fails at every learning rate tried" in to_markdown(card)
    assert card["level"]["level"] == 1


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (lambda job: not is_policy(job), "nanochat fails at every learning rate"),
        (lambda job: not is_policy(job) and job.seed == SEEDS[3], "pair 4 failed"),
    ],
)
def test_a_baseline_that_fails_ends_in_one_line(fails, words):
    with pytest.raises(EvidenceError, match=words) as error:
        make_trial(world(fails=fails), POLICY, BASELINE)
    assert "new calibration" in str(error.value) and "\n" not in str(error.value)


def test_a_candidate_that_fails_on_a_pair_has_failed_and_the_page_says_which():
    bench = world(fails=lambda job: is_policy(job) and job.seed == SEEDS[4])
    tried, outcomes = make_trial(bench, POLICY, BASELINE)
    card = card_of(tried, bench, POLICY, BASELINE)
    assert outcomes == ["null"] and "its run on pair 5 failed" in to_markdown(card)
    assert card["phases"]["n"] == 7  # the runs that survived
    assert [third["mean"] for third in card["phases"]["thirds"]["gate"]] == [0.5] * 3


def test_a_failure_after_the_first_look_is_held_against_the_winner():
    """Only constants, which tie with the winner, remain to be released."""
    bench = world(
        held=0.05, fails=lambda job: is_policy(job) and job.gate is None and job.seed == SEEDS[11]
    )
    tried, outcomes = make_trial(bench, POLICY, BASELINE, until="attribute")
    assert outcomes == ["win"] and tried.parts["confirmation"]["pairs"] == 8
    assert tried.verdict.label == CONSTANTS
    assert tried.verdict.contrasts["winner over constants"].p == 1.0
    assert np.isnan(tried.gates).all(1).tolist() == [i == 11 for i in range(20)]
    card = card_of(tried, bench, POLICY, BASELINE)
    assert no_win(card) == "its run on pair 12 failed" and not is_win(card)
    assert "its run on pair 12 failed" in sentence(card)


def donor_seeds(bench):
    first = bench.config.confirm.lr_seeds
    return [bench.lr_seeds()[0] + first + i for i in range(bench.config.attribute.donors)]


def test_if_every_donor_fails_nothing_is_replayed_and_it_is_not_sensing():
    bench = world(fails=lambda job: is_policy(job) and job.fold == 1 and job.seed in donors)
    donors = donor_seeds(bench)
    tried, _ = make_trial(bench, POLICY, BASELINE, until="attribute")
    attribution = tried.parts["attribution"]
    assert attribution["donors"] == 0
    assert attribution["trajectory"] is attribution["panel"] is None
    assert attribution["bpb"]["schedule"] == [None] * 20
    assert tried.verdict.label != SENSING


def test_donors_that_failed_are_left_out_of_the_mean_trajectory():
    bench = world(fails=lambda job: is_policy(job) and job.seed == donor_seeds(bench)[0])
    tried, _ = make_trial(bench, POLICY, BASELINE, until="attribute")
    assert tried.parts["attribution"]["donors"] == bench.config.attribute.donors - 1
    assert tried.parts["attribution"]["trajectory"] == pytest.approx([0.5] * 200)


# Conditions of a win


def test_a_win_by_the_protocols_own_rules_counts():
    bench = world()
    tried, outcomes = make_trial(bench, POLICY, BASELINE)
    card = card_of(tried, bench, POLICY, BASELINE)
    assert outcomes == ["win"] and is_win(card) and not card["exploratory"]
    assert tried.verdict == (Unattributed.NOT_ATTRIBUTED.value, None, {})
    confirmation = card["confirmation"]
    gains = np.subtract(confirmation["baseline_bpb"], confirmation["winner_bpb"])
    assert confirmation["paired_sd_in_sigma"] == pytest.approx(gains.std(ddof=1) / 0.01)
    assert f"scattered by {confirmation['paired_sd_in_sigma']:.2f} sigma" in to_markdown(card)


LOOSER = {"first_p": 0.011, "p": 0.041, "min_gain": 0.49, "worst": 2.1}
LOOSER |= {"first_seeds": 7, "seeds": 19}


@pytest.mark.parametrize("name", LOOSER)
def test_a_win_by_looser_rules_is_exploratory_and_counts_for_nothing(name):
    bench = world(**{f"confirm__{name}": LOOSER[name]})
    tried, outcomes = make_trial(bench, POLICY, BASELINE)
    card = card_of(tried, bench, POLICY, BASELINE)
    assert outcomes == ["win"] and card["exploratory"] and not is_win(card)
    assert card["level"]["level"] <= 2
    page = to_markdown(card)
    assert f"no win counts: {name}." in page and f"{LOOSER[name]:g}" in page


def test_stricter_rules_are_not_loosened():
    strict = ConfirmationRules(9, 0.005, 24, 0.02, 0.8, 1.0, confirmations=3)
    assert loosened(strict) == {} == loosened(ConfirmationRules())


def test_the_second_confirmation_of_a_search_is_exploratory():
    bench = world()
    tried, _ = make_trial(bench, POLICY, BASELINE, slot=make_slot(exploratory=True))
    assert no_win(card_of(tried, bench, POLICY, BASELINE)) == "its confirmation was exploratory"


# Comparators that a candidate must beat


def valley(octaves):
    """Returns a loss with two valleys, the better one at five times the calibrated step size."""
    return -0.02 * math.exp(-((octaves + 1.0) ** 2)) - 0.08 * math.exp(-((octaves - 2.3) ** 2))


@pytest.mark.parametrize(("gain", "outcome"), [(0.0, "null"), (0.05, "win")])
def test_a_multiplier_that_reaches_a_better_valley_is_not_a_gain_by_itself(gain, outcome):
    """The baseline's learning rates are searched as far as the candidate's step sizes reach."""

    def bpb_of(job):
        size = lr_factor(bench, job) * job.candidate.spec.update_multiplier
        return 2.0 + valley(math.log2(size)) + noisy(job, is_policy(job)) - is_policy(job) * gain

    bench = make_bench(bpb_of)
    large = arm("candidate", ANNEALING._replace(update_multiplier=4.0))
    tried, outcomes = make_trial(bench, large, BASELINE)
    rates = tried.parts["confirmation"]["learning_rates"]
    assert outcomes == [outcome]
    assert rates["baseline"]["chosen"] == pytest.approx(2.0**2.3, rel=0.05)
    assert 4.0 * rates["winner"]["chosen"] == pytest.approx(2.0**2.3, rel=0.05)
    alone, _ = bench.pick_lr(BASELINE)
    assert alone.lr_factor == pytest.approx(0.5, rel=0.05)


def is_control(job):
    return job.candidate.spec == CONTROL.spec


def test_the_tuned_baseline_itself_has_to_be_beaten():
    """The control scored better in promotion, but is worse."""
    bench = world(gain=0.0, more=lambda job: 0.1 * is_control(job))
    assert make_trial(bench, POLICY, CONTROL)[1] == ["win"]
    tried, outcomes = make_trial(bench, POLICY, BASELINE, CONTROL)
    assert outcomes == ["null"] and tried.against == BASELINE.id
    assert tried.parts["confirmation"]["test"]["p"] > 0.04
    (other,) = tried.parts["confirmation"]["others"]
    assert (other["id"], other["outcome"]) == (CONTROL.id, "win")
    page = to_markdown(card_of(tried, bench, POLICY, BASELINE))
    assert "| candidate over g001c00 |" in page and "g001c00 x" in page


def test_the_card_describes_the_closer_of_two_references_in_any_order():
    bench = world(more=lambda job: -0.01 * is_control(job))
    orders = [(BASELINE, CONTROL), (CONTROL, BASELINE)]
    (tried, outcomes), (again, _) = (make_trial(bench, POLICY, *order) for order in orders)
    confirmation = tried.parts["confirmation"]
    assert outcomes == ["win"] and tried.against == CONTROL.id
    assert confirmation == again.parts["confirmation"]
    (other,) = confirmation["others"]
    assert other["test"]["mean"] > confirmation["test"]["mean"]


def test_the_cost_of_arms_enters_the_compute_to_the_target():
    bench = world()
    dear = POLICY._replace(cost=1.5)
    tried, _ = make_trial(bench, dear, BASELINE)
    target = tried.parts["confirmation"]["to_target"]
    share = target["winner_steps_over_baseline"]
    assert 0 < share < 1 and target["winner_cost_over_baseline"] == pytest.approx(1.5 * share)


# Plan and power


@pytest.mark.parametrize("references", [1, 2])
def test_a_dry_run_counts_what_runs_if_both_looks_are_needed(references):
    bench = world(gain=0.001)
    make_trial(bench, POLICY, *(BASELINE, CONTROL)[:references])
    keys = {job.key for stage in (LR_STAGE, "confirm: test") for job in bench.runs.of(stage)}
    assert len(keys) == total_runs(dry_run(bench.config, references).confirmation)


def test_power_is_reported_for_close_pairs_and_for_independent_runs():
    lines = []
    tried, _ = make_trial(world(), POLICY, BASELINE, log=lines.append)
    close, independent = tried.parts["power"]["twins"], tried.parts["power"]["strangers"]
    assert close["paired_sigma_in_sigma"] == pytest.approx(0.5)
    assert independent["paired_sigma_in_sigma"] == pytest.approx(2.0 * math.sqrt(2.0))
    assert independent["power_at_one_sigma"] < close["power_at_one_sigma"]
    assert lines[0].startswith("power: ") and "2.83 sigma" in lines[0]


# The perturbation panel


@pytest.mark.parametrize(
    ("changes", "panel"),
    [
        ({}, True),  # only the step moves its gate, but it beats its placebos
        ({"gate_of": own_gate}, False),  # it beats its placebos with a different gate on each seed
        ({"gate_of": own_gate, "held": 0.05}, True),  # it ties with its placebos
    ],
)
def test_the_panel_is_run_where_placebos_leave_sensing_open(changes, panel):
    tried, _ = make_trial(world(**changes), POLICY, BASELINE, until="attribute")
    assert (tried.parts["attribution"]["panel"] is not None) == panel
    assert (tried.parts["attribution"]["step_share"] == 1.0) == (not changes)
    if not panel:
        assert tried.verdict.label == SENSING


# Rewritten functions


def test_a_gain_of_rewritten_functions_is_confirmed_with_them_and_named_after_them():
    code = code_of(certify(BLEND, "direction", [(8, 8)]))

    def bpb_of(job):
        rewritten = job.candidate.code is not None
        rate = 0.1 * math.log2(lr_factor(bench, job)) ** 2
        return 2.0 + noisy(job, rewritten) + rate - 0.05 * rewritten

    bench = make_bench(bpb_of)
    winner = POLICY._replace(code=code)
    tried, outcomes = make_trial(bench, winner, BASELINE, until="attribute")
    assert outcomes == ["win"] and tried.verdict.label == REWRITTEN
    tested = bench.runs.of("confirm: test")
    assert sum(job.candidate.code == code for job in tested) == len(tested) / 2
    page = to_markdown(card_of(tried, bench, winner, BASELINE))
    assert "ahead = x + 0.8 * (buffer - x)" in page
