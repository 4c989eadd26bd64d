"""Statistics compared with brute force and with each other."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.statistics import (
    auc,
    fit_lr,
    kendall_tau,
    paired_test,
    seed_noise,
)

GAINS = st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=3, max_size=20)
BPB = st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.5, math.nan]), min_size=2, max_size=7)


@given(GAINS)
def test_p_is_the_tail_of_the_t_distribution(gains):
    test = paired_test(gains)
    if len(set(gains)) == 1:
        assert test.p == 1.0
        return
    t = np.mean(gains) / (np.std(gains, ddof=1) / math.sqrt(len(gains)))
    assert test.p == pytest.approx(stats.t.sf(t, len(gains) - 1), abs=1e-9)
    half = stats.t.ppf(0.975, len(gains) - 1) * test.sd / math.sqrt(test.n)
    assert (test.low, test.high) == pytest.approx((test.mean - half, test.mean + half))


@given(GAINS, st.floats(0.01, 100))
def test_p_depends_neither_on_the_unit_nor_on_the_order(gains, unit):
    scaled = paired_test([unit * x for x in reversed(gains)])
    assert scaled.p == pytest.approx(paired_test(gains).p, abs=1e-6)


@given(GAINS, st.integers(0, 20), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_failed_run_is_never_dropped(gains, place, bad):
    gains.insert(place, bad)
    test = paired_test(gains)
    assert (test.p, test.mean) == (1.0, -math.inf)


def test_without_variance_there_is_no_evidence():
    assert paired_test([0.5] * 8).p == 1.0
    assert paired_test([0.5]).p == 1.0
    assert paired_test([]).p == 1.0


def test_noise_is_found_in_simulated_pairs():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(0, 0.03, 4000), rng.normal(0, 0.01, (2, 4000))
    noise = seed_noise(2.0 + shared + own[0], 1.9 + shared + own[1])
    assert noise.sigma == pytest.approx(math.hypot(0.03, 0.01), rel=0.05)
    assert noise.paired_sigma == pytest.approx(0.01 * math.sqrt(2), rel=0.05)
    assert noise.correlation == pytest.approx(0.9, abs=0.02)
    assert noise.sigma_low < noise.sigma < noise.sigma_high


def test_the_interval_of_sigma_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for sample in rng.normal(0, 1, (400, 8)):
        noise = seed_noise(sample, rng.normal(0, 1, 8))
        covered += noise.sigma_low <= 1.0 <= noise.sigma_high
    assert 0.92 < covered / 400 < 0.98


def test_noise_refuses_a_failed_run():
    with pytest.raises(EvidenceError, match="failed"):
        seed_noise([1.0, math.nan, 2.0], [1.0, 1.0, 1.0])


@given(BPB, BPB)
def test_auc_counts_pairs(good, bad):
    worst = lambda x: x if math.isfinite(x) else math.inf  # noqa: E731
    pairs = [(worst(g), worst(b)) for g, b in itertools.product(good, bad)]
    expected = np.mean([1.0 if g < b else 0.5 if g == b else 0.0 for g, b in pairs])
    assert auc(good, bad) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=8))
def test_tau_counts_concordant_pairs(points):
    a, b = (np.array(x, float) for x in zip(*points, strict=True))
    pairs = list(itertools.combinations(range(len(a)), 2))
    agree = sum(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs)
    ties = [sum(x[i] != x[j] for i, j in pairs) for x in (a, b)]
    if all(ties):
        assert kendall_tau(a, b) == pytest.approx(agree / math.sqrt(ties[0] * ties[1]))


def test_a_failure_ranks_last():
    assert kendall_tau([1, 2, math.nan], [5, 6, 7]) == pytest.approx(1.0)


FACTORS = [0.5, 0.5**0.5, 1.0, 2**0.5, 2.0]


@given(st.floats(-0.9, 0.9), st.floats(0.01, 5.0), st.floats(-3, 3))
def test_the_vertex_of_a_parabola_is_found(place, curvature, floor):
    losses = [[floor + curvature * (math.log2(f) - place) ** 2] * 3 for f in FACTORS]
    fit = fit_lr(FACTORS, np.array(losses))
    assert fit.factor == pytest.approx(2.0**place, rel=1e-3)


@pytest.mark.parametrize(("slope", "edge"), [(1.0, "low"), (-1.0, "high")])
def test_an_edge_that_is_best_is_named(slope, edge):
    fit = fit_lr(FACTORS, np.array([[slope * math.log2(f)] for f in FACTORS]))
    assert fit.edge == edge
    assert fit.factor == pytest.approx({"low": 0.5, "high": 2.0}[edge])


@pytest.mark.parametrize(("order", "edge"), [(1, "high"), (-1, "low")])
def test_a_minimum_beyond_the_range_is_an_edge_though_no_end_is_best(order, edge):
    losses = np.array([2.2530, 2.2366, 2.2336, 2.2202, 2.2204])[::order]
    assert 0 < losses.argmin() < 4
    assert fit_lr(FACTORS, losses[:, None]).edge == edge


def test_a_best_point_at_an_end_is_an_edge_though_the_parabola_ends_earlier():
    fit = fit_lr(FACTORS, np.array([[4.0], [1.0], [0.9], [1.0], [0.8]]))
    assert fit.edge == "high" and fit.factor == 2.0


def test_the_hill_between_two_valleys_is_not_taken_for_a_minimum():
    losses = np.array([1.00, 1.20, 1.40, 1.38, 1.15, 0.90, 1.10])
    factors = [0.5 * 2.0 ** (i / 2) for i in range(7)]
    fit = fit_lr(factors, losses[:, None])
    assert factors[4] < fit.factor < factors[6]


@given(st.lists(st.floats(0.0, 1.0), min_size=5, max_size=9))
def test_what_is_chosen_lies_next_to_the_best_point_tried(losses):
    factors = [0.5 * 2.0 ** (i / 2) for i in range(len(losses))]
    fit = fit_lr(factors, np.array(losses)[:, None])
    off = abs(math.log2(fit.factor / factors[int(np.argmin(losses))]))
    assert off <= 0.5 + 1e-9


def test_a_learning_rate_that_diverges_is_left_out():
    losses = np.array([[(math.log2(f)) ** 2] * 2 for f in FACTORS])
    losses[-1, 0] = math.nan
    assert fit_lr(FACTORS, losses) == fit_lr(FACTORS[:-1], losses[:-1])
    assert fit_lr(FACTORS, np.full((5, 2), math.nan)) is None
