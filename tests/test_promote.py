"""Promotion inside a search on simulated runs: its choice of the candidate and its comparator."""

import math

import numpy as np
from benches import arm, lr_factor, make_bench
from certified_code import SOURCES, certify, code_record
from records import make_record

from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.evolution.campaign import Campaign
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.evolution.promotion import planned_runs, promote
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

CONTROL = "g001c07"  # the baseline's spec with another weight decay
MULTIPLIERS = {"nanochat": 1.0, CONTROL: 1.0, "a": 1.01, "b": 1.02, "c": 1.03, "d": 1.04}


def twice(*names):
    """Returns a rule by which these candidates fail at twice the learning rate."""
    return lambda name, job, doubled: doubled and name in names


def run_promotion(folder, gains, *, fails=lambda name, job, twice: False, spec_of=None):
    """Promotes among four policies and a control with known gains.

    Args:
      folder: Folder of the archive.
      gains: Gain by name in bpb; 0 if missing.
      fails: Function of a name, a job and whether the learning rate is doubled that returns
        whether the run fails.
      spec_of: Specs by name that replace the default ones.

    Returns:
      (records by id, the document, the bench).
    """
    names = list(MULTIPLIERS)
    specs = {
        name: NANOCHAT._replace(ns_steps=5 - (name in "abcd"), update_multiplier=value)
        for name, value in MULTIPLIERS.items()
    } | (spec_of or {})

    def name_of(job):
        controlled = job.candidate.recipe.weight_decay > 1.5 * usual_decay
        return next(
            n for n in names if (n == CONTROL) == controlled and job.candidate.spec == specs[n]
        )

    def bpb_of(job):
        name = name_of(job)
        if fails(name, job, lr_factor(bench, job) > 1.9):
            return math.nan
        noise = np.random.default_rng([job.seed, names.index(name)]).normal(0, 0.0005)
        return 2.0 + noise - gains.get(name, 0.0)

    bench = make_bench(bpb_of, promote__first=4, promote__final=3)
    usual_decay = bench.candidate(arm(), bench.config.train.steps).recipe.weight_decay
    decayed = {"weight_decay": 3 * bench.config.recipe.weight_decay}
    records = [
        make_record(
            name,
            spec=specs[name],
            generation=int(name != "nanochat"),
            score=gains.get(name, 0.0) / 0.01,
            bpb=2.0 - gains.get(name, 0.0),
            recipe=decayed if name == CONTROL else None,
        )
        for name in names
    ]
    campaign = Campaign(None, bench.config, folder, Scale(0.01, 0.25, 0.0))
    settled, document = promote(campaign, records, bench.runs, lambda line: None)
    return {record.id: record for record in settled}, document, bench


def test_the_best_on_fresh_seeds_is_picked_and_meets_the_baseline(tmp_path):
    records, document, _ = run_promotion(
        tmp_path, {"a": 0.01, "b": 0.03, "c": 0.02, CONTROL: -0.01}
    )
    assert (document["candidate"], document["comparator"]) == ("b", "nanochat")
    assert records["b"].status == "promoted" and len(records["b"].seeds) == 1 + 3 + 6


def test_a_control_that_scores_higher_than_the_baseline_is_what_a_candidate_meets(tmp_path):
    _, document, _ = run_promotion(tmp_path, {"b": 0.03, CONTROL: 0.01})
    assert document["comparator"] == CONTROL


def test_a_finalist_that_fails_at_twice_the_rate_is_not_picked(tmp_path):
    _, document, _ = run_promotion(tmp_path, {"b": 0.03, "c": 0.02}, fails=twice("b"))
    assert document["candidate"] == "c"
    assert document["failure_at_twice_the_lr"]["b"] == "loss is not finite"


def test_where_the_baseline_fails_there_too_it_is(tmp_path):
    found = run_promotion(tmp_path, {"b": 0.03, "c": 0.02}, fails=twice("b", "nanochat"))
    assert found[1]["candidate"] == "b"


def test_a_retuned_baseline_is_not_picked_and_is_what_a_candidate_meets(tmp_path):
    retuned = NANOCHAT._replace(update_multiplier=1.3)
    records, document, _ = run_promotion(
        tmp_path, {"b": 0.03, "c": 0.02, CONTROL: 0.01}, spec_of={"b": retuned}
    )
    assert document["retuned_baseline"] == ["b"]
    assert (document["candidate"], document["comparator"]) == ("c", "b")
    assert records["b"].status == "retuned_baseline"


def test_the_plan_of_a_search_counts_every_run_of_promotion(tmp_path):
    _, _, bench = run_promotion(tmp_path, {"b": 0.03})
    screening = 3 + bench.config.search.generations * bench.config.search.population
    assert planned_runs(bench.config) - screening == len(bench.runs.of("promote"))


def test_a_finalist_with_one_failed_run_of_many_is_dead(tmp_path):
    records, document, _ = run_promotion(
        tmp_path,
        {"b": 0.03, "c": 0.02},
        fails=lambda name, job, _: name == "b" and job.seed % 8 == 4,
    )
    assert len(records["b"].seeds) == 10 and records["b"].status == "dead"
    assert document["candidate"] == "c"


def test_a_candidate_with_rewritten_code_is_promoted_like_any_and_trains_with_it(tmp_path):
    function = certify(SOURCES["gate"], "gate")
    Library(tmp_path / "code").put(function)
    code = code_record(function, diff="+new", proposal=0)

    def bpb_of(job):
        noise = np.random.default_rng(job.seed).normal(0, 0.0005)
        return 2.0 + noise - (0.03 if job.candidate.code else 0.01 * job.candidate.spec.ns_steps)

    bench = make_bench(bpb_of)
    fields = {"spec": ANNEALING, "generation": 1}
    records = [
        make_record(),
        make_record("annealing", score=1.0, spec=ANNEALING._replace(ns_steps=1)),
        make_record("p0000", score=3.0, bpb=1.97, operator="code:gate", code=code, **fields),
    ]
    campaign = Campaign(None, bench.config, tmp_path, Scale(0.01, 0.25, 0.0))
    settled, document = promote(campaign, records, bench.runs, lambda line: None)
    assert document["candidate"] == "p0000" and settled[-1].status == "promoted"
    trained = [job.candidate.code for job in bench.runs.of("promote") if job.candidate.code]
    assert len(trained) == 3 + 6 + 1 and {each.of("gate").id for each in trained} == {function.id}
    assert archive.load_all(tmp_path / "archive.jsonl")[-1].code == code
