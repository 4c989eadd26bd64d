"""Hard limits on calls, tokens, money and time: a call that might exceed one is not made.

What a call may cost at most is known before it is made. What it did cost is what its answer says,
or the most possible where that is unknown.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from nanoevolve_jax.codegen.mutators.providers import Provider

BYTES_PER_TOKEN = 3  # at least; English and Python have about four
MESSAGE_TOKENS = 100  # tokens that an endpoint adds to a prompt, at most
COMPLAINT_BYTES = 13_000  # bytes by which the second prompt is longer than the first, at most


class Spent(NamedTuple):
    """Cost of some calls."""

    calls: int = 0  # requests that were or may have been billed
    tokens: int = 0  # input and output tokens
    dollars: float = 0.0
    seconds: float = 0.0  # time spent waiting for providers, added up over calls


class Limits(NamedTuple):
    """The most that may be spent; infinity stands for no limit."""

    calls: float = math.inf
    tokens: float = math.inf
    dollars: float = math.inf
    seconds: float = math.inf


def prompt_tokens(prompt: str) -> int:
    """Returns an upper bound on the number of tokens in a prompt."""
    return -(-len(prompt.encode(errors="replace")) // BYTES_PER_TOKEN) + MESSAGE_TOKENS


def worst_attempt(provider: Provider, prompt: str) -> tuple[int, int]:
    """Returns the largest numbers of input and output tokens of one attempt."""
    return prompt_tokens(prompt) + provider.overhead_tokens, provider.max_output_tokens


def worst_call(provider: Provider, prompt: str) -> Spent:
    """Returns the most that one call may cost, all its attempts and pauses included."""
    tokens = worst_attempt(provider, prompt)
    attempts = provider.attempts
    pauses = provider.retries * max(provider.backoff_max_seconds, provider.backoff_seconds)
    return Spent(
        attempts,
        attempts * sum(tokens),
        attempts * provider.dollars(*tokens),
        attempts * provider.timeout_seconds + pauses,
    )


def worst_proposal(provider: Provider, prompt: str) -> Spent:
    """Returns the most that a proposal may cost: a call, and a second one with a longer prompt."""
    longer = prompt + " " * COMPLAINT_BYTES
    return total([worst_call(provider, prompt), worst_call(provider, longer)])


def total(parts: Iterable[Spent]) -> Spent:
    """Returns the sum of some costs. It does not depend on their order."""
    calls, tokens, dollars, seconds = tuple(zip(*parts, strict=True)) or ((),) * 4
    return Spent(sum(calls), sum(tokens), math.fsum(dollars), math.fsum(seconds))


def exceeded(limits: Limits, spent: Spent, reserved: Spent, worst: Spent) -> str | None:
    """Returns the first limit that a call might exceed, as a phrase; None if it may be made.

    Args:
      limits: What must not be exceeded.
      spent: Cost of the calls that have ended.
      reserved: The most that the calls under way may cost.
      worst: The most that the new call may cost.
    """
    for name, limit in limits._asdict().items():
        past, held, more = (getattr(part, name) for part in (spent, reserved, worst))
        if math.fsum((past, held, more)) > limit:
            return (
                f"limit of {name}: {limit:g}; {past:g} spent, {held:g} reserved, and a call may "
                f"need {more:g} more"
            )
    return None


def describe(spent: Spent) -> str:
    """Returns a cost as one line."""
    return (
        f"paid requests: {spent.calls}; tokens: {spent.tokens:,}; dollars: {spent.dollars:.6f}; "
        f"seconds: {spent.seconds:.1f}"
    )
