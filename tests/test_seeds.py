"""Seeds and folds: runs of different purpose never share one."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.seeds import (
    MOST_CONFIRMATIONS,
    PROMOTE_FOLD,
    SCREEN_FOLD,
    Stage,
    confirmation_fold,
    confirmation_seeds,
    stage_seed,
)

purposes = st.tuples(st.sampled_from(Stage), st.integers(0, 2**16 - 1), st.integers(0, 2**11 - 1))


@given(purposes, purposes)
def test_runs_share_a_seed_only_if_they_are_the_same_run(one, other):
    assert (stage_seed(*one) == stage_seed(*other)) == (one == other)


def test_neighbours_at_the_ends_of_every_range_differ():
    ends = [
        (stage, campaign, index)
        for stage in Stage
        for campaign in (0, 1, 2**15, 2**16 - 2, 2**16 - 1)
        for index in (0, 1, 2**10, 2**11 - 2, 2**11 - 1)
    ]
    assert len({stage_seed(*purpose) for purpose in ends}) == len(ends)


def test_the_screen_of_campaign_0_is_seed_0():
    assert stage_seed(Stage.SCREEN, 0, 0) == 0


@given(purposes)
def test_a_seed_fits_where_seeds_go(purpose):
    seed = stage_seed(*purpose)
    assert type(seed) is int and np.uint32(seed) == seed
    assert np.random.SeedSequence([seed, 0]).entropy == [seed, 0]


def test_jax_tells_the_largest_seeds_apart():
    largest = [np.uint32(stage_seed(stage, 2**16 - 1, 2**11 - 1)) for stage in Stage]
    keys = {tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in largest}
    assert len(keys) == len(Stage)


@pytest.mark.parametrize(
    ("campaign", "index", "words"),
    [
        (-1, 0, "campaign must be from 0 to 65535, got -1"),
        (2**16, 0, "campaign must be from 0 to 65535, got 65536"),
        (0, -1, "index must be from 0 to 2047, got -1"),
        (0, 2**11, "index must be from 0 to 2047, got 2048"),
    ],
)
def test_what_would_run_into_another_range_is_refused(campaign, index, words):
    with pytest.raises(ValueError, match=words):
        stage_seed(Stage.TUNE, campaign, index)


@pytest.mark.parametrize("folds", [3, 8, 64])
def test_every_fold_is_used_once_and_then_no_more(folds):
    used = [SCREEN_FOLD, PROMOTE_FOLD, *(confirmation_fold(i, folds) for i in range(folds - 2))]
    assert used == list(range(folds))
    with pytest.raises(EvidenceError, match=rf"data\.folds must be .*{folds - 2}.*, got {folds}"):
        confirmation_fold(folds - 2, folds)


def test_confirmations_share_no_seed_of_any_stage():
    seeds = [
        seed
        for stage in (Stage.CONFIRM, Stage.DISTURB, Stage.TRANSFER, Stage.CHEAPER, Stage.WIDER)
        for number in range(MOST_CONFIRMATIONS)
        for seed in confirmation_seeds(stage, 7, number)
    ]
    assert len(set(seeds)) == len(seeds) == 5 * 32 * 64
    assert confirmation_seeds(Stage.CONFIRM, 7, 3, 5) == confirmation_seeds(Stage.CONFIRM, 7, 3)[:5]
    with pytest.raises(ValueError, match="count must be from 0 to 64, got 65"):
        confirmation_seeds(Stage.CONFIRM, 7, 0, 65)
