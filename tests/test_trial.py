"""A trial from its power to its verdict, on runs that cost nothing."""

import math

import numpy as np
import pytest
from benches import arm, card_of, lr_factor, make_bench, make_consumed, make_trial

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.page import to_markdown
from nanoevolve_jax.evidence.verdict import CONSTANTS, SENSING
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat", NANOCHAT)
SEEDS = make_consumed().seeds


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
        shared, own = (np.random.default_rng([job.seed, *key]) for key in ((), (is_policy(job),)))
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
    assert card["phases"]["thirds"]["gate"] == pytest.approx([0.5] * 3)  # of those that survived


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
