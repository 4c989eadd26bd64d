"""Who goes on: by shrunken scores, and never a candidate with a failed run."""

import math

from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.evidence.score import PromotionRules, best, first_round, pick, second_round

SCORES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.floats(-5, 5) | st.just(-math.inf), max_size=20
)


@given(SCORES, st.integers(1, 25))
def test_the_best_are_those_no_one_left_out_beats(scores, count):
    chosen = best(scores, count)
    alive = [name for name, score in scores.items() if score > -math.inf]
    assert len(chosen) == min(count, len(alive))
    left = [scores[name] for name in alive if name not in chosen]
    assert all(scores[name] >= worse for name in chosen for worse in left)
    assert [scores[n] for n in chosen] == sorted((scores[n] for n in chosen), reverse=True)


def test_the_rounds_narrow_down_to_one():
    rules = PromotionRules(first=3, final=2)
    scores = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2}
    assert first_round(scores, rules) == ["b", "c", "d"]
    assert second_round({"b": 0.0, "c": 0.3, "d": 0.2}, rules) == ["c", "d"]
    assert pick({"c": 0.1, "d": 0.2}) == "d"


def test_nothing_is_picked_when_every_finalist_failed():
    assert pick({"a": -math.inf}) is None
    assert pick({}) is None
