"""Equality of training results: bitwise within a program, approximate across programs."""

import functools

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from training import RECIPE, TASK, candidate, lane, make_rows, train_population

from nanoevolve_jax.execution import measurements, population, train
from nanoevolve_jax.execution.train import segment_of
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, PRESETS, TRUST_RATIO, set_field

measurements.start_counting()
STEPS = 12
POISON = candidate(NANOCHAT, embedding_lr=float("nan"), matrix_lr=float("nan"))


@functools.lru_cache
def programs(devices, lanes):
    return population.make_programs(TASK, devices=devices, lanes=lanes)


def train_them(candidates, devices=1, lanes=4, segment=5, seeds=None, steps=STEPS):
    seeds = [7] * len(candidates) if seeds is None else seeds
    return train_population(
        programs(devices, lanes), candidates, seeds, make_rows(steps), total=steps, segment=segment
    )


def assert_same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


ME, OTHERS = candidate(ANNEALING), [candidate(TRUST_RATIO), candidate(NANOCHAT), POISON]


@pytest.mark.parametrize(("devices", "lanes"), [(1, 4), (2, 2)])
def test_a_lane_is_bitwise_blind_to_position_padding_and_neighbours(devices, lanes):
    width = devices * lanes
    alone, telemetry = train_them([ME] * width, devices, lanes)
    for position in range(width):
        crowd = list(OTHERS[: width - 1])
        crowd.insert(position, ME)
        state, columns = train_them(crowd, devices, lanes)
        assert_same_bits(lane(state, position), lane(alone, 0))
        np.testing.assert_array_equal(columns[position], telemetry[0])


def test_a_poisoned_lane_dies_alone_at_the_step_it_shows():
    state, telemetry = train_them([ME, POISON, ME, ME])
    assert state.failed_step.tolist() == [train.ALIVE, 1, train.ALIVE, train.ALIVE]
    assert train.FAILURES[state.failure[1]] == "non-finite loss"
    assert np.isfinite(telemetry[[0, 2, 3]]).all()
    assert np.isfinite(telemetry[1, 0]).all()
    assert not np.isfinite(telemetry[1, 1:, train.TELEMETRY.index("loss")]).any()


@pytest.mark.slow
def test_segments_of_any_length_give_the_same_bits():
    # Each segment length compiles a different program. Results are bitwise equal only within one
    # program, so other lengths are compared with a tolerance.
    whole, telemetry = train_them([ME] * 4, segment=12)
    again, columns = train_them([ME] * 4, segment=12)
    assert_same_bits(whole, again)
    np.testing.assert_array_equal(telemetry, columns)
    parts, columns = train_them([ME] * 4, segment=5)
    np.testing.assert_allclose(columns, telemetry, rtol=2e-3, atol=2e-3)
    assert parts.failed_step.tolist() == [train.ALIVE] * 4


def test_lanes_and_devices_agree_closely_over_twenty_steps_from_random_weights():
    rows, results = make_rows(20), []
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda: train.init_state(TASK, candidate(), np.uint32(0), np.int32(20)).params
    )
    weights = jax.tree.map(lambda x: (0.05 * rng.normal(size=x.shape)).astype(x.dtype), shapes)
    for devices, lanes in [(1, 1), (1, 4), (2, 2)]:
        width = devices * lanes
        first = jax.tree.map(lambda x, n=width: np.broadcast_to(x, (n, *x.shape)), weights)
        _, telemetry = train_population(
            programs(devices, lanes),
            [ME] * width,
            [7] * width,
            rows,
            total=20,
            segment=5,
            first_params=first,
        )
        results.append(telemetry[0, :, train.TELEMETRY.index("loss")])
    for losses in results[1:]:
        np.testing.assert_allclose(losses, results[0], atol=1e-5)


def test_no_spec_recipe_seed_or_horizon_compiles_a_program_twice():
    local = programs(2, 2)
    train_them([ME] * 4, 2, 2)  # compiles everything in advance
    before = measurements.compilations()
    variants = [*PRESETS.values(), set_field(NANOCHAT, "ns_steps", 2)]
    for seed, spec in enumerate(variants):
        train_population(
            local,
            [candidate(spec, matrix_lr=0.01 * (seed + 1))] * 4,
            [seed, seed + 1, seed + 2, seed + 3],
            make_rows(6 + seed),
            total=6 + seed,
            segment=5,
        )
    assert measurements.compilations() == before
    assert before["train_segment"] + before["cache_hits"] >= 1


def test_a_restored_state_goes_on_bitwise_and_compiles_nothing(tmp_path):
    local, rows = programs(2, 2), make_rows(10)
    stacked = local.place(population.stack_candidates([ME, *OTHERS]))
    lanes = local.place(segment_of(np.broadcast_to(rows[:5], (4, *rows[:5].shape))))
    seeds = local.place(np.uint32([1, 2, 3, 4]))

    def segment(state, start):
        return local.train_segment(state, stacked, lanes, np.int32(start), np.int32(10))[0]

    middle = segment(local.init_population(stacked, seeds, np.int32(10)), 0)
    saved = jax.device_get(middle)
    before = measurements.compilations()
    expected = jax.device_get(segment(middle, 5))
    with ocp.CheckpointManager(tmp_path.resolve()) as manager:
        manager.save(5, args=ocp.args.StandardSave(saved))
        manager.wait_until_finished()
        restored = manager.restore(5, args=ocp.args.StandardRestore(saved))
    assert_same_bits(restored, saved)
    assert_same_bits(jax.device_get(segment(local.place(restored), 5)), expected)
    assert measurements.compilations() == before


def test_stacking_gives_dtypes_that_depend_on_no_value():
    whole = NANOCHAT._replace(update_multiplier=1, momentum=0)  # integers instead of floats
    stacked = population.stack_candidates(
        [train.Candidate(whole, RECIPE._replace(weight_decay=0))] * 2
    )
    assert stacked.spec.update_multiplier.dtype == np.float32
    assert stacked.recipe.weight_decay.dtype == np.float32
    assert stacked.spec.ns_steps.dtype == np.int32


@pytest.mark.slow
def test_two_hundred_steps_on_other_lanes_stay_within_a_thousandth():
    losses = []
    for devices, lanes in [(1, 1), (2, 1), (1, 4)]:
        _, telemetry = train_them([ME] * (devices * lanes), devices, lanes, segment=50, steps=200)
        losses.append(telemetry[0, -10:, train.TELEMETRY.index("loss")].mean())
    np.testing.assert_allclose(losses, losses[0], atol=1e-3)
