"""Hard limits on calls, tokens, money and time: a call that might break one is not made.

What was spent is what the answers on disk say; what calls under way may spend at worst is reserved.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nanoevolve_jax.codegen.mutators.answers import Answer, call_folders, read_answer
from nanoevolve_jax.codegen.mutators.providers import Provider
from nanoevolve_jax.codegen.mutators.requests import read_request

BYTES_A_TOKEN = 3
"""Of a prompt, at least: English and Python have about four."""
MESSAGE_TOKENS = 100
"""What an endpoint adds to a prompt of one message, at most."""
COMPLAINT_BYTES = 13_000
"""What a second try's prompt is longer than the first one's, at most."""


class Spent(NamedTuple):
    """What calls cost."""

    calls: int = 0  # attempts that were or may have been paid
    tokens: int = 0  # of input and output together
    dollars: float = 0.0
    seconds: float = 0.0  # of waiting for providers, call by call


class Limits(NamedTuple):
    """The most that may be spent; `inf`: no limit."""

    calls: float = math.inf
    tokens: float = math.inf
    dollars: float = math.inf
    seconds: float = math.inf


def prompt_tokens(prompt: str) -> int:
    """At least as many tokens as a prompt has."""
    return -(-len(prompt.encode(errors="replace")) // BYTES_A_TOKEN) + MESSAGE_TOKENS


def worst_attempt(provider: Provider, prompt: str) -> tuple[int, int]:
    """The most tokens that one attempt may use: of input, of output."""
    return prompt_tokens(prompt) + provider.overhead_tokens, provider.max_output_tokens


def worst_call(provider: Provider, prompt: str) -> Spent:
    """The most that one call may cost, all its attempts included."""
    tokens = worst_attempt(provider, prompt)
    attempts = provider.attempts
    pauses = provider.retries * longest_pause(provider)
    return Spent(
        attempts,
        attempts * sum(tokens),
        attempts * provider.dollars(*tokens),
        attempts * provider.timeout_seconds + pauses,
    )


def worst_proposal(provider: Provider, prompt: str) -> Spent:
    """The most that a proposal may cost: a call, and a second one that is told what was wrong."""
    longer = prompt + " " * COMPLAINT_BYTES
    return total([worst_call(provider, prompt), worst_call(provider, longer)])


def longest_pause(provider: Provider) -> float:
    """Seconds between two attempts, at most."""
    return max(provider.backoff_max_seconds, provider.backoff_seconds)


def spent_by(answers: Iterable[Answer]) -> Spent:
    """What answers cost together."""
    return total(
        Spent(a.requests, a.input_tokens + a.output_tokens, a.dollars, a.seconds) for a in answers
    )


def in_words(spent: Spent) -> str:
    """What was spent, in a line."""
    return (
        f"paid requests: {spent.calls}; tokens: {spent.tokens:,}; dollars: {spent.dollars:.6f}; "
        f"seconds: {spent.seconds:.1f}"
    )


def total(parts: Iterable[Spent]) -> Spent:
    """A sum; of floats the exact one, rounded once, so that the order does not matter."""
    calls, tokens, dollars, seconds = tuple(zip(*parts, strict=True)) or ((),) * 4
    return Spent(sum(calls), sum(tokens), math.fsum(dollars), math.fsum(seconds))


def allows(limits: Limits, spent: Spent, reserved: Spent, worst: Spent) -> str | None:
    """Whether a call may be made.

    Args:
      limits: what must not be exceeded.
      spent: by calls that have ended.
      reserved: by calls under way, at worst.
      worst: what the call may cost.

    Returns:
      None, or the first limit that might break, in words.
    """
    for name, limit in limits._asdict().items():
        past, held, more = (getattr(part, name) for part in (spent, reserved, worst))
        if math.fsum((past, held, more)) > limit:
            return (
                f"limit of {name}: {limit:g}; {past:g} spent, {held:g} reserved, and a call may "
                f"need {more:g} more"
            )
    return None


def books(directory: Path) -> tuple[Spent, Spent]:
    """What the calls of a run folder have spent, and what those without an answer may at worst.

    Raises:
      CodegenError: if a file is damaged.
    """
    spent, reserved = [], []
    for folder in call_folders(directory):
        answer = read_answer(folder)
        if answer is not None:
            spent.append(answer)
        else:
            request = read_request(folder)
            reserved.append(worst_call(request.provider, request.prompt))
    return spent_by(spent), total(reserved)


def permitted(limits: Limits, directory: Path, provider: Provider, prompt: str) -> str | None:
    """Why a call must not be made, by the books of a run folder; None if it may."""
    return allows(limits, *books(directory), worst_call(provider, prompt))
