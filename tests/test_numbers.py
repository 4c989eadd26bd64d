"""Numbers in messages compare in the same order as the numbers themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.errors import apart

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-9)


@given(NUMBERS, NUMBERS, st.integers(0, 4), st.sampled_from("gf"))
def test_texts_compare_as_the_numbers_do(value, limit, digits, style):
    if value != limit:
        text, bound = apart(value, limit, digits, style)
        assert (float(text) < float(bound)) == (value < limit) and float(text) != float(bound)


@pytest.mark.parametrize(
    ("given_", "texts"),
    [
        ((0.0123, 0.0131, 2, "f"), ("0.01", "0.0131")),
        ((0.0, 2.0, 2, "f"), ("0.00", "2")),
        ((0.0500001, 0.05), ("0.0500001", "0.05")),
        ((0.899996, 0.9, 3, "f"), ("0.899996", "0.9")),
        ((0.7, 0.9, 3, "f"), ("0.700", "0.9")),
    ],
)
def test_digits_are_added_where_two_numbers_would_look_the_same(given_, texts):
    assert apart(*given_) == texts
