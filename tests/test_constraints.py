"""What no gain can buy, asked of promotion's finalists and of whoever is confirmed by id."""

import math

import pytest
from benches import arm, lr_factor, make_bench

from nanoevolve_jax.confirm import require_constraints
from nanoevolve_jax.evidence.eligibility import STATE_LIMIT, Constraints, measure
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat", NANOCHAT)


def fragile(*fails_twice):
    """A bench where these arms ('policy', 'baseline') fail at twice the learning rate."""

    def bpb_of(job):
        name = "policy" if job.candidate.spec.control.enabled else "baseline"
        return math.nan if name in fails_twice and lr_factor(bench, job) > 1.9 else 2.0

    bench = make_bench(bpb_of)
    return bench


@pytest.mark.parametrize(
    ("fails", "broken"),
    [((), False), (("policy",), True), (("policy", "baseline"), False), (("baseline",), False)],
)
def test_a_candidate_must_survive_twice_the_learning_rate_if_the_baseline_does(fails, broken):
    held = measure(fragile(*fails), BASELINE, [POLICY], "promote")
    reason = held.broken("candidate")
    assert (reason is not None) == broken
    if broken:
        assert "at twice the learning rate" in reason and "loss is not finite" in reason


def test_it_is_asked_at_the_screening_horizon_on_a_promotion_seed():
    bench = fragile()
    measure(bench, BASELINE, [POLICY], "promote")
    assert [(j.seed, j.fold, j.steps) for j in bench.runs.of("promote")] == [
        (bench.lr_seeds()[0], 1, bench.config.train.steps)
    ] * 2
    assert [lr_factor(bench, job) for job in bench.runs.of("promote")] == pytest.approx([2, 2])


def test_a_state_above_the_limit_is_refused_and_the_gates_own_is_below():
    held = measure(fragile(), BASELINE, [POLICY], "promote")
    ratio = held.state_bytes_over_nanochat["candidate"]
    assert 1.0 < ratio <= STATE_LIMIT and held.broken("candidate") is None
    large = Constraints("b", {"b": None, "c": None}, {"c": 1.06})
    assert "1.060 times NanoChat's" in large.broken("c")


def test_a_candidate_that_breaks_one_is_refused_before_it_is_confirmed():
    require_constraints(fragile(), BASELINE, POLICY)
    with pytest.raises(EvidenceError, match="'candidate', which cannot win: at twice") as error:
        require_constraints(fragile("policy"), BASELINE, POLICY)
    assert "allowed: " in str(error.value) and "\n" not in str(error.value)
