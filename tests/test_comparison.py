"""Learning rates chosen on losses with a known optimum, and known crossings of curves."""

import math

import numpy as np
import pytest
from benches import arm, lr_factor, make_bench

from nanoevolve_jax.evidence.comparison import LR_FACTORS, steps_to


def bowl(best, *, breaks_at=math.inf):
    """Returns a bench whose loss is a parabola over log2(lr) and fails above a factor."""

    def bpb_of(job):
        factor = lr_factor(bench, job)
        return math.nan if factor >= breaks_at else 2.0 + 0.1 * math.log2(factor / best) ** 2

    bench = make_bench(bpb_of)
    return bench


def test_an_optimum_within_the_range_is_found_without_extending_it():
    picked, search = bowl(1.2).pick_lr(arm())
    assert search["factors"] == list(LR_FACTORS) and search["edge"] is None
    assert picked.lr_factor == search["chosen"] == pytest.approx(1.2)


@pytest.mark.parametrize("best", [2.24, 2.9, 4.5, 1 / 2.24, 1 / 4.5])
def test_the_range_is_extended_until_it_holds_the_optimum(best):
    picked, search = bowl(best).pick_lr(arm())
    assert picked.lr_factor == pytest.approx(best)
    assert search["factors"][0] < best < search["factors"][-1]
    assert search["edge"] is None


def test_extension_ends_and_says_that_the_edge_is_still_best():
    picked, search = bowl(40.0).pick_lr(arm())
    assert len(search["factors"]) == len(LR_FACTORS) + 3
    assert search["edge"] == "high"
    assert picked.lr_factor == pytest.approx(2.0 * 2.0**1.5)


def test_the_range_is_not_extended_past_a_learning_rate_that_fails():
    picked, search = bowl(4.0, breaks_at=1.9).pick_lr(arm())
    assert search["factors"] == list(LR_FACTORS) and search["edge"] is None
    assert picked.lr_factor == pytest.approx(2.0**0.5)


def test_an_arm_that_fails_everywhere_keeps_its_learning_rate_and_says_so():
    picked, search = bowl(1.0, breaks_at=0.0).pick_lr(arm())
    assert picked.lr_factor == 1.0
    assert search["chosen"] is None
    assert search["bpb"] == [[None] * 3] * 5


def test_a_target_is_reached_where_it_is_first_crossed():
    curve = np.array([[0, 4.0], [10, 2.0], [20, 3.0], [30, 1.0]])
    assert steps_to(curve, 2.5) == pytest.approx(7.5)
    assert steps_to(curve, 4.0) == 0.0
    assert steps_to(curve, 0.5) is None
