"""A trial from its power to its verdict, on runs that cost nothing."""

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
from nanoevolve_jax.evidence.trial import planned_calls
from nanoevolve_jax.evidence.verdict import CONSTANTS, NOT_ASKED, REWRITTEN, SENSING
from nanoevolve_jax.evidence.work import total_runs
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat", NANOCHAT)
SEEDS = make_slot().seeds


def is_policy(job):
    return bool(job.candidate.spec.control.enabled)


def world(gain=0.05, held=0.0, fails=lambda job: False, gate_of=None, **changes):
    """A bench where the policy gains, and with its gate replaced gains something else.

    Args:
      gain: of the policy, bpb; sigma is 0.01.
      held: of the policy with another gate.
      fails: which jobs do.
      gate_of: the policy's own gate in a job.
      **changes: of the config.
    """

    def bpb_of(job):
        if fails(job):
            return math.nan
        arm_of = (is_policy(job), job.gate is not None)
        shared, own = (np.random.default_rng([job.seed, *key]) for key in ((), arm_of))
        mine = gain if job.gate is None else held
        loss = 2.0 + shared.normal(0, 0.01) + own.normal(0, 0.002)
        return loss + 0.1 * math.log2(lr_factor(bench, job)) ** 2 - is_policy(job) * mine

    bench = make_bench(bpb_of, gate_of=gate_of, **changes)
    return bench


# A run that is not finite


def test_a_candidate_that_fails_at_every_learning_rate_has_failed():
    bench = world(fails=is_policy)
    found, outcomes = make_trial(bench, POLICY, BASELINE)
    confirmation = found.parts["confirmation"]
    assert outcomes == ["null"] == [confirmation["outcome"]]
    assert confirmation["pairs"] == 0 and confirmation["learning_rates"]["winner"]["chosen"] is None
    assert bench.runs.of("confirm: test") == []
    card = card_of(found, bench, POLICY, BASELINE)
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
    assert "allowed: " in str(error.value) and "\n" not in str(error.value)


def test_a_candidate_that_fails_on_a_pair_has_failed_and_the_page_says_which():
    bench = world(fails=lambda job: is_policy(job) and job.seed == SEEDS[4])
    found, outcomes = make_trial(bench, POLICY, BASELINE)
    assert outcomes == ["null"]
    card = card_of(found, bench, POLICY, BASELINE)
    assert "its run on pair 5 failed" in to_markdown(card)
    assert card["phases"]["n"] == 7  # those that survived
    assert [third["mean"] for third in card["phases"]["thirds"]["gate"]] == [0.5] * 3


def test_a_failure_after_the_first_look_is_held_against_the_winner():
    """Constants that tie with it are all that is left to release."""
    bench = world(
        held=0.05, fails=lambda job: is_policy(job) and job.gate is None and job.seed == SEEDS[11]
    )
    found, outcomes = make_trial(bench, POLICY, BASELINE, until="attribute")
    assert outcomes == ["win"] and found.parts["confirmation"]["pairs"] == 8
    assert found.verdict.label == CONSTANTS
    assert found.verdict.contrasts["winner over constants"].p == 1.0
    assert np.isnan(found.gates).all(1).tolist() == [i == 11 for i in range(20)]
    card = card_of(found, bench, POLICY, BASELINE)
    assert no_win(card) == "its run on pair 12 failed" and not is_win(card)
    assert sentence(card).endswith("It does not count, for its run on pair 12 failed.")


def test_no_donor_that_survives_leaves_nothing_to_replay_and_no_sensing():
    donors = []

    def fails(job):  # the seeds after those of the learning rates
        return is_policy(job) and job.fold == 1 and job.seed in donors

    bench = world(fails=fails)
    first, count = bench.config.confirm.lr_seeds, bench.config.attribute.donors
    donors += [bench.lr_seeds()[0] + first + i for i in range(count)]
    found, _ = make_trial(bench, POLICY, BASELINE, until="attribute")
    attribution = found.parts["attribution"]
    assert attribution["donors"] == 0 and attribution["trajectory"] is None
    assert attribution["bpb"]["schedule"] == [None] * 20
    assert attribution["panel"] is None
    assert found.verdict.label != SENSING


def test_donors_that_failed_are_left_out_of_the_mean_trajectory():
    bench = world(fails=lambda job: is_policy(job) and job.seed == bench.lr_seeds()[0] + 3)
    found, _ = make_trial(bench, POLICY, BASELINE, until="attribute")
    assert found.parts["attribution"]["donors"] == bench.config.attribute.donors - 1
    assert found.parts["attribution"]["trajectory"] == pytest.approx([0.5] * 200)


# What counts as a win


def test_a_win_by_the_protocols_own_rules_counts():
    bench = world()
    found, outcomes = make_trial(bench, POLICY, BASELINE)
    card = card_of(found, bench, POLICY, BASELINE)
    assert outcomes == ["win"] and is_win(card) and not card["exploratory"]
    assert found.verdict == (NOT_ASKED, None, {})  # nothing said what to release


LOOSER = {
    "first_p": 0.011,
    "p": 0.041,
    "min_gain": 0.49,
    "worst": 2.1,
    "first_seeds": 7,
    "seeds": 19,
}


@pytest.mark.parametrize("name", LOOSER)
def test_a_win_by_looser_rules_is_exploratory_and_counts_for_nothing(name):
    bench = world(**{f"confirm__{name}": LOOSER[name]})
    found, outcomes = make_trial(bench, POLICY, BASELINE)
    card = card_of(found, bench, POLICY, BASELINE)
    assert outcomes == ["win"] and card["exploratory"] and not is_win(card)
    assert card["level"]["level"] <= 2
    page = to_markdown(card)
    assert f"Looser than the protocol's, so that no win counts: {name}." in page
    assert f"{LOOSER[name]:g}" in page and "It does not count" in page


def test_stricter_rules_are_not_loosened():
    strict = ConfirmationRules(9, 0.005, 24, 0.02, 0.8, 1.0, confirmations=3)
    assert loosened(strict) == {} == loosened(ConfirmationRules())


def test_the_second_confirmation_of_a_search_is_exploratory():
    bench = world()
    found, _ = make_trial(bench, POLICY, BASELINE, slot=make_slot(exploratory=True))
    assert no_win(card_of(found, bench, POLICY, BASELINE)) == "its confirmation was exploratory"


# What a candidate has to beat


def valleys(size):
    """A loss over step sizes with two valleys, the better one at five times the calibrated size."""
    octaves = math.log2(size)
    return 2.0 - 0.02 * math.exp(-((octaves + 1.0) ** 2)) - 0.08 * math.exp(-((octaves - 2.3) ** 2))


def two_valleys(gain):
    """A bench where only the step size counts, and what the policy gains besides."""

    def bpb_of(job):
        policy = is_policy(job)
        shared, own = (np.random.default_rng([job.seed, *key]) for key in ((), (policy,)))
        noise = shared.normal(0, 0.01) + own.normal(0, 0.002)
        size = lr_factor(bench, job) * job.candidate.spec.update_multiplier
        return valleys(size) + noise - policy * gain

    bench = make_bench(bpb_of)
    return bench


LARGE = arm("candidate", ANNEALING._replace(update_multiplier=4.0))


@pytest.mark.parametrize(("gain", "outcome"), [(0.0, "null"), (0.05, "win")])
def test_a_multiplier_in_a_better_valley_is_no_gain_for_the_baseline_is_taken_there(gain, outcome):
    bench = two_valleys(gain)
    found, outcomes = make_trial(bench, LARGE, BASELINE)
    assert outcomes == [outcome]
    rates = found.parts["confirmation"]["learning_rates"]
    sizes = rates["baseline"]["chosen"], 4.0 * rates["winner"]["chosen"]
    assert sizes == (pytest.approx(2.0**2.3, rel=0.05), pytest.approx(2.0**2.3, rel=0.05))
    alone, _ = bench.pick_lr(BASELINE)  # as it would be found without the candidate
    assert alone.lr_factor == pytest.approx(0.5, rel=0.05)


CONTROL = arm("g001c00", NANOCHAT._replace(update_multiplier=0.9))


def test_the_tuned_baseline_itself_has_to_be_beaten():
    """The control, which scored better in promotion, is worse than that."""
    bench = world(gain=0.0)
    usual = bench.runs.bpb_of
    bench.runs.bpb_of = lambda job: usual(job) + 0.1 * (job.candidate.spec == CONTROL.spec)
    assert make_trial(bench, POLICY, CONTROL)[1] == ["win"]
    found, outcomes = make_trial(bench, POLICY, BASELINE, CONTROL)
    confirmation = found.parts["confirmation"]
    assert outcomes == ["null"] and found.against == BASELINE.id
    assert confirmation["test"]["p"] > 0.04
    (other,) = confirmation["others"]
    assert (other["id"], other["outcome"]) == (CONTROL.id, "win")
    page = to_markdown(card_of(found, bench, POLICY, BASELINE))
    assert "| candidate over g001c00 |" in page and "g001c00 x" in page


def test_a_win_over_two_is_told_of_the_closer_one_in_any_order():
    bench = world()
    usual = bench.runs.bpb_of
    bench.runs.bpb_of = lambda job: usual(job) - 0.01 * (job.candidate.spec == CONTROL.spec)
    orders = [(BASELINE, CONTROL), (CONTROL, BASELINE)]
    (found, outcomes), (other, _) = (make_trial(bench, POLICY, *order) for order in orders)
    assert outcomes == ["win"] and found.against == CONTROL.id
    assert found.parts["confirmation"] == other.parts["confirmation"]
    gains = [one["test"]["mean"] for one in found.parts["confirmation"]["others"]]
    assert min(gains) > found.parts["confirmation"]["test"]["mean"]


@pytest.mark.parametrize("references", [1, 2])
def test_what_is_planned_is_what_runs_if_no_range_is_widened(references):
    bench = world(gain=0.001)  # both looks
    make_trial(bench, POLICY, *(BASELINE, CONTROL)[:references])
    made = {job.key for stage in (LR_STAGE, "confirm: test") for job in bench.runs.of(stage)}
    assert len(made) == total_runs(planned_calls(bench.config, references))


# Power and scatter


def test_power_is_said_for_twins_and_for_strangers_at_the_upper_end_of_sigma():
    lines = []
    found, _ = make_trial(world(), POLICY, BASELINE, log=lines.append)
    power = found.parts["power"]
    assert power["twins"]["paired_sigma_in_sigma"] == pytest.approx(0.5)
    assert power["strangers"]["paired_sigma_in_sigma"] == pytest.approx(2.0 * math.sqrt(2.0))
    assert power["strangers"]["power_at_one_sigma"] < power["twins"]["power_at_one_sigma"]
    assert lines[0].startswith("power: ") and "2.83 sigma" in lines[0]


def test_how_the_pairs_scattered_stands_on_card_and_page():
    bench = world()
    found, _ = make_trial(bench, POLICY, BASELINE)
    confirmation = found.parts["confirmation"]
    gains = np.subtract(confirmation["baseline_bpb"], confirmation["winner_bpb"])
    assert confirmation["paired_sd_in_sigma"] == pytest.approx(gains.std(ddof=1) / 0.01)
    words = f"The gains of these pairs scattered by {confirmation['paired_sd_in_sigma']:.2f} sigma."
    assert words in to_markdown(card_of(found, bench, POLICY, BASELINE))


# When the perturbation panel is run


def test_a_gate_that_only_the_step_moves_is_asked_in_the_panel_though_it_beats_its_placebos():
    found, _ = make_trial(world(), POLICY, BASELINE, until="attribute")
    assert found.parts["attribution"]["step_share"] == 1.0
    assert found.parts["attribution"]["panel"] is not None


def test_a_gate_of_its_own_on_every_seed_that_beats_its_placebos_needs_no_panel():
    bench = world(gate_of=lambda job: np.random.default_rng(job.seed).random(job.steps))
    found, _ = make_trial(bench, POLICY, BASELINE, until="attribute")
    assert found.verdict.label == SENSING
    assert found.parts["attribution"]["panel"] is None


def test_what_ties_with_a_placebo_is_asked_in_the_panel():
    bench = world(held=0.05, gate_of=lambda job: np.random.default_rng(job.seed).random(job.steps))
    found, _ = make_trial(bench, POLICY, BASELINE, until="attribute")
    assert found.parts["attribution"]["panel"] is not None


# Rewritten functions


def test_a_gain_of_rewritten_functions_is_confirmed_with_them_and_named_after_them():
    code = code_of(certify(BLEND, "direction", [(8, 8)]))

    def bpb_of(job):
        rewritten = job.candidate.code is not None
        shared, own = (np.random.default_rng([job.seed, *key]) for key in ((), (rewritten,)))
        loss = 2.0 + shared.normal(0, 0.01) + own.normal(0, 0.002)
        return loss + 0.1 * math.log2(lr_factor(bench, job)) ** 2 - 0.05 * rewritten

    bench = make_bench(bpb_of)
    winner = POLICY._replace(code=code)
    found, outcomes = make_trial(bench, winner, BASELINE, until="attribute")
    assert outcomes == ["win"] and found.verdict.label == REWRITTEN
    tested = bench.runs.of("confirm: test")
    assert sum(job.candidate.code == code for job in tested) == len(tested) / 2
    card = card_of(found, bench, winner, BASELINE)
    assert "ahead = x + 0.8 * (buffer - x)" in to_markdown(card)
