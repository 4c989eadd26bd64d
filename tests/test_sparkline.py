"""Curves of block characters: their length, their order and their gaps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nanoevolve_jax.terminal.sparkline import BLOCKS, GAP, Curve, sparkline

numbers = st.floats(allow_nan=False, allow_infinity=False)
anything = st.floats()
widths = st.integers(1, 40)


@given(st.lists(anything, max_size=100), st.integers(-2, 40))
def test_it_is_a_character_a_value_and_never_wider_than_asked(values, width):
    line = sparkline(values, width)
    assert len(line) == max(0, min(len(values), width))
    assert set(line) <= {*BLOCKS, GAP}


@given(st.lists(numbers, min_size=1, max_size=40))
def test_the_extremes_are_the_lowest_and_the_highest_block(values):
    line = sparkline(values, len(values))
    scaled = np.array(values) / (max(map(abs, values)) or 1.0)
    if scaled.min() == scaled.max():
        assert len(set(line)) == 1
    else:
        assert line[int(scaled.argmin())] == BLOCKS[0]
        assert line[int(scaled.argmax())] == BLOCKS[-1]


@given(st.lists(numbers, min_size=1, max_size=40))
def test_a_larger_value_never_has_a_lower_block(values):
    ordered = sparkline(sorted(values), len(values))
    assert list(ordered) == sorted(ordered)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=100), widths)
def test_the_unit_does_not_matter(values, width):
    assert sparkline([1024.0 * x for x in values], width) == sparkline(values, width)


@given(st.lists(st.one_of(numbers, st.just(math.nan), st.just(math.inf)), max_size=40))
def test_what_is_not_finite_is_a_gap_and_nothing_else_is(values):
    line = sparkline(values, 40)
    assert [block == GAP for block in line] == [not math.isfinite(x) for x in values]


def test_a_long_curve_is_averaged_part_by_part():
    assert sparkline([0, 2, 4, 6, 8, 10, 12, 14], 4) == sparkline([1, 5, 9, 13], 4) == "▁▃▆█"
    assert sparkline([5, math.nan, math.nan, math.nan, 1, 1], 3) == "█ ▁"


@pytest.mark.parametrize("width", [1, 7, 30])
def test_it_takes_the_room_there_is(width):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(Curve(range(100), most=20))
    assert capture.get().rstrip("\n") == sparkline(range(100), min(width, 20))
