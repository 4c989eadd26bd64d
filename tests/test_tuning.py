"""Tuning on landscapes with a known optimum."""

import math

import numpy as np
import pytest

from nanoevolve_jax.configs import base
from nanoevolve_jax.evidence.calibration import dimensions, recipe_of
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.tuning import (
    Dimension,
    Tuning,
    at_edge,
    ranked,
    shortlist,
    tune,
    widened,
)

LR = Dimension("lr", 0.25, 4.0, 1e-3, 1e3, log=True)
DOWN = Dimension("down", 0.3, 0.9, 0.0, 1.0, log=False)
DEFAULT = {"lr": 1.0, "down": 0.6}


def bowl(lr, down):
    """Returns a loss with its minimum at this learning rate and this warm-down."""

    def evaluate(points):
        return [0.1 * math.log2(p["lr"] / lr) ** 2 + (p["down"] - down) ** 2 for p in points]

    return evaluate


def run(evaluate, runs=40, **changes):
    arguments = {"dimensions": [LR, DOWN], "runs": runs, "batch": 4, "seed": 0} | changes
    return tune(evaluate, default=DEFAULT, **arguments)


def test_the_budget_is_spent_exactly_and_the_default_comes_first():
    sizes = []
    evaluate = bowl(1.5, 0.7)
    tuning = run(lambda points: sizes.append(len(points)) or evaluate(points), runs=10)
    assert sizes == [4, 4, 2]
    assert tuning.points[0] == DEFAULT
    assert len(tuning.points) == len(tuning.bpb) == 10


def test_the_same_seed_asks_for_the_same_points():
    assert run(bowl(1.5, 0.7)) == run(bowl(1.5, 0.7))
    assert run(bowl(1.5, 0.7), seed=1).points != run(bowl(1.5, 0.7)).points


def test_the_surrogate_finds_the_bottom_of_a_noisy_bowl():
    rng = np.random.default_rng(0)
    clean = bowl(1.5, 0.7)
    tuning = run(lambda points: [x + rng.normal(0, 0.005) for x in clean(points)], runs=60)
    point = shortlist(tuning, DEFAULT, seed=0)["surrogate"]
    assert math.log2(point["lr"] / 1.5) == pytest.approx(0, abs=0.4)
    assert point["down"] == pytest.approx(0.7, abs=0.1)


def test_a_range_whose_edge_wins_is_widened_and_others_are_not():
    tuning = run(bowl(12.0, 0.6), runs=60)
    lr, down = tuning.dimensions
    assert lr.high > 4.0 and lr.low == 0.25
    assert (down.low, down.high) == (0.3, 0.9)
    assert max(p["lr"] for p in tuning.points) > 4.0


def test_no_range_is_widened_beyond_its_hard_bounds():
    tuning = run(bowl(1.0, 1.4), runs=60)
    assert tuning.dimensions[1].high <= 1.0
    assert all(p["down"] <= 1.0 for p in tuning.points)


def test_failed_runs_are_told_apart_and_never_listed():
    evaluate = bowl(0.5, 0.6)

    def diverging(points):
        pairs = zip(points, evaluate(points), strict=True)
        return [math.nan if point["lr"] > 1.2 else bpb for point, bpb in pairs]

    tuning = run(diverging)
    assert any(math.isnan(x) for x in tuning.bpb)
    assert all(p["lr"] <= 1.2 for p in ranked(tuning))
    listed = shortlist(tuning, DEFAULT, seed=0)
    assert all(listed[name]["lr"] <= 1.2 for name in ("best", "second", "centroid"))
    with pytest.raises(EvidenceError, match="all 1 runs"):
        ranked(Tuning((LR, DOWN), [DEFAULT], [math.nan]))


def test_a_dimension_goes_to_the_unit_interval_and_back():
    for dimension, value in ((LR, 0.7), (DOWN, 0.45)):
        assert dimension.from_unit(dimension.to_unit(value)) == pytest.approx(value)
    assert LR.to_unit(1.0) == pytest.approx(0.5)


def test_the_default_point_is_the_recipe_that_tuning_starts_from():
    start = base.get_config().recipe.to_dict()
    dims, default = dimensions(start)
    assert recipe_of(default, start) == pytest.approx(start, rel=1e-3)
    assert {d.name for d in dims} == set(default)
    for d in dims:
        assert d.hard_low <= d.low <= default[d.name] <= d.high <= d.hard_high


def test_what_was_tried_before_is_kept_and_gone_on_from():
    first = run(bowl(12.0, 0.6), runs=10)
    ranges = widened(first.dimensions, {"lr": first.dimensions[0].high, "down": 0.6})
    more = run(bowl(12.0, 0.6), runs=8, dimensions=ranges, earlier=first)
    assert more.points[:10] == first.points and len(more.points) == 18
    assert more == run(bowl(12.0, 0.6), runs=8, dimensions=ranges, earlier=first)
    assert more.dimensions[0].high >= ranges[0].high > first.dimensions[0].high
    # The earlier points guide the new ones.
    assert np.median([p["lr"] for p in more.points[10:]]) > 3.0


@pytest.mark.parametrize(
    ("lr", "down", "edges"),
    [(1.0, 0.6, []), (0.25, 0.6, ["lr"]), (3.95, 0.89, ["lr", "down"]), (9.0, 0.6, ["lr"])],
)
def test_a_soft_edge_is_named(lr, down, edges):
    assert at_edge([LR, DOWN], {"lr": lr, "down": down}) == edges


def test_a_hard_bound_is_no_edge():
    full = DOWN._replace(low=0.0, high=1.0)
    assert at_edge([full], {"down": 1.0}) == at_edge([full], {"down": 0.0}) == []
