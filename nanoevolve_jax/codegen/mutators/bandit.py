"""The choice of the next provider: a bandit on realised gain per cost.

Thompson sampling with discounts. Each provider has a Beta posterior of its gain per proposal, as a
share of the largest gain seen, and a draw from it is divided by the cost of a proposal. Older
outcomes count less, because what can still be gained changes as the search goes on. Draws are used
instead of bounds because several proposals are under way at once, and with the same history they
still go to different providers.

References:
  Xia et al. 2015, Thompson sampling for budgeted multi-armed bandits, IJCAI.
  Agrawal & Goyal 2012, arXiv:1111.1797 (gains in [0, 1]).
  Raj & Kalyani 2017, arXiv:1707.09727 (discounts).
  Chapelle & Li 2011, An empirical evaluation of Thompson sampling (delayed outcomes).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.evolution.proposals import FAILED, Entry

DISCOUNT = 0.98  # weight of an outcome after each further one
# Least price of a token, so that free providers can be compared. Time has no price, because it
# varies, and a campaign that is killed must choose like one that is not.
DOLLARS_PER_TOKEN = 1e-7
LEAST_DOLLARS = 1e-4  # least price of a proposal
PATIENCE = 3  # failures in a row after which a provider is set aside
FIRST_REST, LONGEST_REST = 4, 64
"""Number of outcomes for which it is set aside, at first and at most; each failure doubles it."""
_DRAWS = 2000


class Outcome(NamedTuple):
    """One settled proposal."""

    provider: str
    gain: float  # gain over its parent; negative gains count as 0
    dollars: float
    tokens: int  # input and output tokens
    failed: bool  # whether there was no answer


def history_of(entries: Iterable[Entry]) -> list[Outcome]:
    """Returns the outcomes of journal entries."""
    return [
        Outcome(
            e.provider, e.gain, e.dollars, e.input_tokens + e.output_tokens, e.outcome == FAILED
        )
        for e in entries
    ]


def choose(names: Sequence[str], history: Sequence[Outcome], seed: int | Sequence[int]) -> str:
    """Returns the provider to ask next; the same for the same arguments.

    Args:
      names: Names of one or more providers.
      history: Settled proposals, in order.
      seed: A seed per proposal.
    """
    able = _able(names, history)
    scores = _draws(able, history, np.random.default_rng(seed), 1)[0]
    return able[int(np.argmax(scores))]


def chances(names: Sequence[str], history: Sequence[Outcome]) -> dict[str, float]:
    """Returns the probability of each provider to be chosen next, from many draws."""
    able = _able(names, history)
    scores = _draws(able, history, np.random.default_rng(0), _DRAWS)
    counts = Counter(np.argmax(scores, axis=1).tolist())
    return {name: counts[able.index(name)] / _DRAWS if name in able else 0.0 for name in names}


def set_aside(history: Sequence[Outcome]) -> frozenset[str]:
    """Returns the providers that are not asked for a while, because they keep failing.

    After `PATIENCE` failures in a row a provider rests for `FIRST_REST` outcomes; then it is tried
    again. Each further failure doubles the rest, and an answer ends it.
    """
    return frozenset(
        provider
        for provider in {outcome.provider for outcome in history}
        if _since(provider, history) < _rest(provider, history)
    )


def cost(outcome: Outcome) -> float:
    """Returns the dollars of a proposal, with the least price of its tokens."""
    return max(outcome.dollars, outcome.tokens * DOLLARS_PER_TOKEN, LEAST_DOLLARS)


def _able(names: Sequence[str], history: Sequence[Outcome]) -> list[str]:
    """Returns the names that are not set aside; if all are, the one that has rested longest."""
    aside = set_aside(history)
    able = [name for name in names if name not in aside]
    return able or [max(names, key=lambda name: _since(name, history))]


def _draws(
    names: Sequence[str], history: Sequence[Outcome], rng: np.random.Generator, count: int
) -> np.ndarray:
    """Returns draws of gain over cost; [count, names]."""
    weights = DISCOUNT ** np.arange(len(history))[::-1]
    largest = max((outcome.gain for outcome in history), default=0.0)
    costs = [cost(outcome) for outcome in history]
    # A provider that was never asked is assumed to cost what others do.
    usual = float(np.average(costs, weights=weights)) if costs else 1.0
    gains = np.array([max(o.gain, 0.0) / largest if largest > 0 else 0.0 for o in history])
    columns = []
    for name in names:
        own = np.array([outcome.provider == name for outcome in history], bool)
        won = float(np.sum(weights[own] * gains[own])) if own.any() else 0.0
        seen = float(np.sum(weights[own])) if own.any() else 0.0
        spent = float(np.sum(weights[own] * np.array(costs)[own])) if own.any() else 0.0
        price = spent / seen if seen else usual
        columns.append(rng.beta(1.0 + won, 1.0 + max(seen - won, 0.0), size=count) / price)
    return np.stack(columns, axis=1)


def _since(provider: str, history: Sequence[Outcome]) -> int:
    """Returns the number of outcomes since the last one of a provider."""
    places = [i for i, outcome in enumerate(history) if outcome.provider == provider]
    return len(history) - 1 - places[-1] if places else len(history)


def _rest(provider: str, history: Sequence[Outcome]) -> int:
    """Returns for how many outcomes a provider rests, given its failures since its last answer."""
    own = [outcome.failed for outcome in reversed(history) if outcome.provider == provider]
    failures = own.index(False) if False in own else len(own)
    if failures < PATIENCE:
        return 0
    return min(FIRST_REST * 2 ** (failures - PATIENCE), LONGEST_REST)
