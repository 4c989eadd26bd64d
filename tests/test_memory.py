"""The number of lanes from the memory, and the recovery from too many lanes."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import TASK, candidate, make_engine

from nanoevolve_jax.execution import measurements, population
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.measurements import OutOfMemoryError, choose_lanes
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT

SIZES = st.integers(1, 10**12)


@given(SIZES, SIZES, SIZES, st.integers(1, 4096))
def test_chosen_lanes_fit_and_twice_as_many_would_not(one, lane, limit, most):
    lanes = choose_lanes(one, one + lane, limit, most)
    fits = lambda n: one + (n - 1) * lane <= 0.9 * limit  # noqa: E731
    assert lanes == 1 or (fits(lanes) and lanes <= most)
    assert lanes & (lanes - 1) == 0
    assert 2 * lanes > most or not fits(2 * lanes)


def test_more_lanes_take_more_memory_by_about_a_lane_each():
    one, two, four = (measurements.segment_bytes(TASK, lanes, 5) for lanes in (1, 2, 4))
    assert 0 < one < two < four
    assert (four - two) / 2 == pytest.approx(two - one, rel=0.5)


def test_a_device_that_says_what_it_has_gets_what_fits(monkeypatch):
    one, two = (measurements.segment_bytes(TASK, lanes, 5) for lanes in (1, 2))
    limit = (one + 2.5 * (two - one)) / 0.9

    class Device:
        def memory_stats(self):
            return {"bytes_limit": limit}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert measurements.measured_lanes(TASK, 5, most=64) == 2
    assert measurements.measured_lanes(TASK, 5, most=1) == 1


def exhausted_beyond(lanes):
    """Returns an engine of four lanes on a device whose memory holds at most `lanes`."""
    engine = make_engine(population.make_programs(TASK, devices=1, lanes=4))

    def make(task, *, devices, lanes):
        return limited(population.make_programs(task, devices=devices, lanes=lanes))

    def limited(programs):
        def train_segment(*args):
            if programs.width > lanes:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
            return programs.train_segment(*args)

        return programs._replace(train_segment=train_segment)

    said = []
    return engine._replace(programs=limited(engine.programs), log=said.append), make, said


def test_out_of_memory_halves_the_lanes_and_says_so(monkeypatch):
    jobs = [Job(candidate(spec), seed, 10) for seed in (1, 2, 3) for spec in (NANOCHAT, ANNEALING)]
    expected = list(make_engine(population.make_programs(TASK, devices=1, lanes=1)).run(jobs))
    engine, make, said = exhausted_beyond(1)
    monkeypatch.setattr("nanoevolve_jax.execution.engine.make_programs", make)
    results = list(engine.run(jobs))
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.telemetry, reference.telemetry)
        assert result.val_bpb == reference.val_bpb
    assert [line.split(" lanes ")[0] for line in said] == ["4", "2"]
    assert all("not bit for bit" in line for line in said)


def test_a_single_lane_that_does_not_fit_is_refused(monkeypatch):
    engine, make, _ = exhausted_beyond(0)
    monkeypatch.setattr("nanoevolve_jax.execution.engine.make_programs", make)
    with pytest.raises(OutOfMemoryError, match=r"config\.train\.batch_size=.* does not fit"):
        list(engine.run([Job(candidate(NANOCHAT), 1, 10)]))
