"""Promotion picks, it does not test: fresh seeds for the best, one goes on."""

from collections.abc import Mapping
from typing import NamedTuple


class PromotionRules(NamedTuple):
    """How many go how far."""

    first: int = 12  # candidates of the first round
    first_seeds: int = 3  # fresh seeds each
    final: int = 4  # candidates of the second round
    final_seeds: int = 6  # further fresh seeds each


def best(scores: Mapping[str, float], count: int) -> list[str]:
    """The `count` best ids that did not fail, best first; ties go to the one listed first.

    Args:
      scores: shrunken scores over all seeds of each candidate, see `score.score`; -inf where any
        run failed.
      count: at most so many.
    """
    alive = [name for name, score in scores.items() if score > float("-inf")]
    return sorted(alive, key=lambda name: -scores[name])[:count]


def first_round(scores: Mapping[str, float], rules: PromotionRules) -> list[str]:
    """Who gets the first fresh seeds, by screening score."""
    return best(scores, rules.first)


def second_round(scores: Mapping[str, float], rules: PromotionRules) -> list[str]:
    """Who gets the rest, by the scores over screening and first-round seeds."""
    return best(scores, rules.final)


def pick(scores: Mapping[str, float]) -> str | None:
    """Who goes on to confirmation, by the scores over all seeds; None if every finalist failed."""
    return next(iter(best(scores, 1)), None)
