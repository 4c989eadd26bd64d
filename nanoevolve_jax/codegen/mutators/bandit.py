"""Chooses the next provider with a bandit on realised gain per cost.

The algorithm is Thompson sampling with discounts. Each provider has a Beta posterior over its gain
per proposal, as a share of the largest gain so far. A draw from the posterior is divided by the
provider's average cost per proposal, and the largest quotient wins. Older outcomes count less,
because the achievable gain changes during the search. Draws are used instead of confidence bounds
because several proposals with the same history are under way at once, and draws distribute them
over the providers.

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

DISCOUNT = 0.98  # factor on the weight of an outcome for each later outcome
# Lowest price of a token, which makes free providers comparable. Time has no price because it
# varies, and a resumed campaign must make the same choices.
DOLLARS_PER_TOKEN = 1e-7
LEAST_DOLLARS = 1e-4  # lowest price of a proposal
PATIENCE = 3  # number of consecutive failures after which a provider is set aside
FIRST_REST, LONGEST_REST = 4, 64
"""Number of outcomes for which it is set aside, at first and at most; each failure doubles it."""
_DRAWS = 2000


class Outcome(NamedTuple):
    """Outcome of a settled proposal."""

    provider: str
    gain: float  # gain in score over the parent; negative gains count as 0
    dollars: float
    tokens: int  # number of input and output tokens
    failed: bool  # whether the provider gave no answer


def history_of(entries: Iterable[Entry]) -> list[Outcome]:
    """Returns the outcomes that journal entries record, in the same order.

    Args:
      entries: Journal entries, oldest first.
    """
    return [
        Outcome(
            e.provider, e.gain, e.dollars, e.input_tokens + e.output_tokens, e.outcome == FAILED
        )
        for e in entries
    ]


def choose(names: Sequence[str], history: Sequence[Outcome], seed: int | Sequence[int]) -> str:
    """Returns the name of the provider to ask next. The choice is deterministic.

    Args:
      names: Names of the providers to choose from, at least one.
      history: Outcomes of settled proposals, oldest first.
      seed: Seed of the random draws, different for each proposal.
    """
    able = _able(names, history)
    scores = _draws(able, history, np.random.default_rng(seed), 1)[0]
    return able[int(np.argmax(scores))]


def chances(names: Sequence[str], history: Sequence[Outcome]) -> dict[str, float]:
    """Returns the probability that each provider is chosen next, estimated from many draws.

    Args:
      names: Names of the providers to choose from, at least one.
      history: Outcomes of settled proposals, oldest first.

    Returns:
      Probabilities in [0, 1] by name; 0 for providers that are set aside.
    """
    able = _able(names, history)
    scores = _draws(able, history, np.random.default_rng(0), _DRAWS)
    counts = Counter(np.argmax(scores, axis=1).tolist())
    return {name: counts[able.index(name)] / _DRAWS if name in able else 0.0 for name in names}


def set_aside(history: Sequence[Outcome]) -> frozenset[str]:
    """Returns the names of the providers that are set aside because they keep failing.

    After `PATIENCE` consecutive failures, a provider is set aside for the next `FIRST_REST`
    outcomes and then tried again. Each further failure doubles this number, up to `LONGEST_REST`.
    An answer resets it.

    Args:
      history: Outcomes of settled proposals, oldest first.
    """
    return frozenset(
        provider
        for provider in {outcome.provider for outcome in history}
        if _since(provider, history) < _rest(provider, history)
    )


def cost(outcome: Outcome) -> float:
    """Returns the cost of a proposal in dollars, with lower bounds per token and per proposal.

    Args:
      outcome: Outcome of the proposal.
    """
    return max(outcome.dollars, outcome.tokens * DOLLARS_PER_TOKEN, LEAST_DOLLARS)


def _able(names: Sequence[str], history: Sequence[Outcome]) -> list[str]:
    """Returns the names that are not set aside, or the longest unused one if all are."""
    aside = set_aside(history)
    able = [name for name in names if name not in aside]
    return able or [max(names, key=lambda name: _since(name, history))]


def _draws(
    names: Sequence[str], history: Sequence[Outcome], rng: np.random.Generator, count: int
) -> np.ndarray:
    """Returns random draws of gain divided by cost, of shape [count, names]."""
    weights = DISCOUNT ** np.arange(len(history))[::-1]
    largest = max((outcome.gain for outcome in history), default=0.0)
    costs = [cost(outcome) for outcome in history]
    # A provider that was never asked is assumed to have the average cost of all proposals.
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
    """Returns the number of outcomes since the provider's last outcome."""
    places = [i for i, outcome in enumerate(history) if outcome.provider == provider]
    return len(history) - 1 - places[-1] if places else len(history)


def _rest(provider: str, history: Sequence[Outcome]) -> int:
    """Returns the number of outcomes for which a provider is set aside after its last outcome."""
    own = [outcome.failed for outcome in reversed(history) if outcome.provider == provider]
    failures = own.index(False) if False in own else len(own)
    if failures < PATIENCE:
        return 0
    return min(FIRST_REST * 2 ** (failures - PATIENCE), LONGEST_REST)
