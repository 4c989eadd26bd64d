"""Which provider to ask next: a bandit on realised gain per cost.

Thompson sampling with discounts: every provider has a Beta posterior of its gain per proposal,
gains being shares of the largest one seen, and a draw from it is divided by what a proposal of it
costs (Xia et al. 2015, Thompson sampling for budgeted multi-armed bandits, IJCAI; Agrawal & Goyal
2012, arXiv:1111.1797, for gains in [0, 1]). Older outcomes count less, because what can still be
gained changes as the search goes on (Raj & Kalyani 2017, arXiv:1707.09727). Draws, and not bounds,
because several proposals are under way at once: with the same history they still go to different
providers (Chapelle & Li 2011, An empirical evaluation of Thompson sampling).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.evolution.proposals import FAILED, Entry

DISCOUNT = 0.98
"""What an outcome counts after each further one."""
DOLLARS_A_TOKEN = 1e-7
"""What a token costs at least, so that free providers can be compared. Waiting costs nothing: time
is not the same twice, and a campaign that is killed must choose as one that is not."""
LEAST_DOLLARS = 1e-4
PATIENCE = 3
"""Failures in a row after which a provider is set aside."""
FIRST_REST, LONGEST_REST = 4, 64
"""For how many outcomes of others, at first and at most; doubled by every further failure."""
_DRAWS = 2000


class Outcome(NamedTuple):
    """One proposal that has ended."""

    provider: str
    gain: float  # over what was known; what is not above 0 counts as 0
    dollars: float
    tokens: int  # of input and output
    failed: bool  # it gave no answer


def history_of(entries: Iterable[Entry]) -> list[Outcome]:
    """What a campaign's books tell of its providers."""
    return [
        Outcome(
            e.provider, e.gain, e.dollars, e.input_tokens + e.output_tokens, e.outcome == FAILED
        )
        for e in entries
    ]


def choose(names: Sequence[str], history: Sequence[Outcome], seed: int | Sequence[int]) -> str:
    """The provider to ask next; the same for the same arguments.

    Args:
      names: providers that can be asked; at least one.
      history: what has ended, in order.
      seed: another one for each proposal.
    """
    able = _able(names, history)
    scores = _draws(able, history, np.random.default_rng(seed), 1)[0]
    return able[int(np.argmax(scores))]


def chances(names: Sequence[str], history: Sequence[Outcome]) -> dict[str, float]:
    """How likely each provider is to be chosen next."""
    able = _able(names, history)
    scores = _draws(able, history, np.random.default_rng(0), _DRAWS)
    counts = Counter(np.argmax(scores, axis=1).tolist())
    return {name: counts[able.index(name)] / _DRAWS if name in able else 0.0 for name in names}


def set_aside(history: Sequence[Outcome]) -> frozenset[str]:
    """Providers that keep failing, for a while.

    After `PATIENCE` failures in a row a provider rests for `FIRST_REST` outcomes, then it is tried
    again; each further failure doubles the rest, and one answer ends it.
    """
    return frozenset(
        provider
        for provider in {outcome.provider for outcome in history}
        if _since(provider, history) < _rest(_failures(provider, history))
    )


def cost(outcome: Outcome) -> float:
    """Dollars of a proposal, its tokens at least."""
    return max(outcome.dollars, outcome.tokens * DOLLARS_A_TOKEN, LEAST_DOLLARS)


def _able(names: Sequence[str], history: Sequence[Outcome]) -> list[str]:
    """Those that are not set aside; if all are, the one that has rested longest."""
    aside = set_aside(history)
    able = [name for name in names if name not in aside]
    return able or [max(names, key=lambda name: _since(name, history))]


def _draws(
    names: Sequence[str], history: Sequence[Outcome], rng: np.random.Generator, count: int
) -> np.ndarray:
    """Draws of gain over cost; [count, names]."""
    weights = DISCOUNT ** np.arange(len(history))[::-1]
    largest = max((outcome.gain for outcome in history), default=0.0)
    costs = [cost(outcome) for outcome in history]
    # A provider that was never asked is taken to cost what others do.
    usual = float(np.average(costs, weights=weights)) if costs else 1.0
    columns = []
    for name in names:
        own = np.array([outcome.provider == name for outcome in history], bool)
        gains = [max(o.gain, 0.0) / largest if largest > 0 else 0.0 for o in history]
        won = float(np.sum(weights[own] * np.array(gains)[own])) if own.any() else 0.0
        seen = float(np.sum(weights[own])) if own.any() else 0.0
        spent = float(np.sum(weights[own] * np.array(costs)[own])) if own.any() else 0.0
        price = spent / seen if seen else usual
        columns.append(rng.beta(1.0 + won, 1.0 + max(seen - won, 0.0), size=count) / price)
    return np.stack(columns, axis=1)


def _failures(provider: str, history: Sequence[Outcome]) -> int:
    """Failures of a provider since its last answer."""
    count = 0
    for outcome in reversed(history):
        if outcome.provider == provider:
            if not outcome.failed:
                break
            count += 1
    return count


def _since(provider: str, history: Sequence[Outcome]) -> int:
    """Outcomes since the last one of a provider."""
    places = [i for i, outcome in enumerate(history) if outcome.provider == provider]
    return len(history) - 1 - places[-1] if places else len(history)


def _rest(failures: int) -> int:
    if failures < PATIENCE:
        return 0
    return min(FIRST_REST * 2 ** (failures - PATIENCE), LONGEST_REST)
