"""Hard limits on calls, tokens, money and time.

An upper bound on the cost of a call is computed before the call is made, and a call that might
exceed a limit is not made. The actual cost is the one that the answer reports. Where the answer
reports nothing, the upper bound counts.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from nanoevolve_jax.codegen.mutators.providers import Provider

BYTES_PER_TOKEN = 3  # low estimate of bytes per token; English and Python have about four
MESSAGE_TOKENS = 100  # largest number of tokens that an endpoint adds to a prompt
COMPLAINT_BYTES = 13_000  # largest difference in bytes between the second and the first prompt


class Spent(NamedTuple):
    """Cost of a set of calls."""

    calls: int = 0  # number of requests that were or may have been billed
    tokens: int = 0  # number of input and output tokens
    dollars: float = 0.0
    seconds: float = 0.0  # time spent waiting for providers, summed over calls


class Limits(NamedTuple):
    """Upper limits on costs; infinity means that there is no limit."""

    calls: float = math.inf
    tokens: float = math.inf
    dollars: float = math.inf
    seconds: float = math.inf


def prompt_tokens(prompt: str) -> int:
    """Returns an upper bound on the number of tokens in a prompt.

    Args:
      prompt: Text of the prompt.
    """
    return -(-len(prompt.encode(errors="replace")) // BYTES_PER_TOKEN) + MESSAGE_TOKENS


def worst_attempt(provider: Provider, prompt: str) -> tuple[int, int]:
    """Returns upper bounds on the numbers of input and output tokens of an attempt.

    Args:
      provider: Profile of the provider.
      prompt: Text of the prompt.
    """
    return prompt_tokens(prompt) + provider.overhead_tokens, provider.max_output_tokens


def worst_call(provider: Provider, prompt: str) -> Spent:
    """Returns an upper bound on the cost of a call, including all its attempts and pauses.

    Args:
      provider: Profile of the provider.
      prompt: Text of the prompt.
    """
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
    """Returns an upper bound on the cost of a proposal.

    A proposal makes up to two calls, and the second call has a longer prompt.

    Args:
      provider: Profile of the provider.
      prompt: Text of the first prompt.
    """
    longer = prompt + " " * COMPLAINT_BYTES
    return total([worst_call(provider, prompt), worst_call(provider, longer)])


def total(parts: Iterable[Spent]) -> Spent:
    """Returns the sum of costs. The rounding of the sum does not depend on their order.

    Args:
      parts: Costs to add.
    """
    calls, tokens, dollars, seconds = tuple(zip(*parts, strict=True)) or ((),) * 4
    return Spent(sum(calls), sum(tokens), math.fsum(dollars), math.fsum(seconds))


def exceeded(limits: Limits, spent: Spent, reserved: Spent, worst: Spent) -> str | None:
    """Returns a phrase about the first limit that a call might exceed, or None.

    Args:
      limits: Limits on the total cost.
      spent: Cost of the calls that have ended.
      reserved: Upper bound on the cost of the calls under way.
      worst: Upper bound on the cost of the new call.

    Returns:
      Phrase with the name and value of the limit, or None if the call may be made.
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
    """Returns a description of a cost as one line.

    Args:
      spent: Cost to describe.
    """
    return (
        f"paid requests: {spent.calls}; tokens: {spent.tokens:,}; dollars: {spent.dollars:.6f}; "
        f"seconds: {spent.seconds:.1f}"
    )
