"""One call: attempts with pauses between them, and what they cost together."""

import random
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from nanoevolve_jax.codegen.mutators.answers import Answer
from nanoevolve_jax.codegen.mutators.budget import worst_attempt
from nanoevolve_jax.codegen.mutators.credentials import redacted, without_secrets
from nanoevolve_jax.codegen.mutators.providers import Provider

LONGEST_FAILURE = 500  # characters


class Attempt(NamedTuple):
    """How one attempt ended."""

    text: str = ""
    input_tokens: int | None = None  # None: not reported, counts as the most possible
    output_tokens: int | None = None
    dollars: float | None = None  # as the provider counts them, if it does
    failure: str | None = None  # in words
    paid: bool = True  # or may have been
    again: bool = False  # worth another attempt
    wait: float | None = None  # seconds that the provider asks for before it


def call(
    provider: Provider,
    prompt: str,
    attempt: Callable[[], Attempt],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    draw: Callable[[], float] = random.random,
) -> Answer:
    """Attempts until one succeeds, cannot, or was the last that the profile allows.

    Args:
      provider: whom to ask.
      prompt: what, for the worst case of an attempt whose tokens nobody reports.
      attempt: makes one attempt; raises nothing.
      sleep: waits for seconds.
      clock: seconds.
      draw: a number in [0, 1), for the jitter.
    """
    began = clock()
    made: list[Attempt] = []
    for number in range(provider.attempts):
        made.append(attempt())
        last = made[-1]
        if last.failure is None or not last.again or number + 1 == provider.attempts:
            break
        pause = pause_before(provider, number, last.wait, draw())
        if pause is None:
            failure = f"{last.failure}; it asks for {last.wait:g} s of patience"
            made[-1] = last._replace(failure=failure)
            break
        sleep(pause)
    return _summed(provider, prompt, made, clock() - began)


def pause_before(provider: Provider, number: int, asked: float | None, draw: float) -> float | None:
    """Seconds after attempt `number`, counted from 0; None if the provider asks for too many.

    The pause doubles, and jitter takes up to half of it away, so that callers that failed together
    do not come back together.
    """
    if asked is not None:
        return asked if asked <= provider.backoff_max_seconds else None
    longest = min(provider.backoff_seconds * 2.0**number, provider.backoff_max_seconds)
    return longest * (1.0 - 0.5 * draw)


def _summed(provider: Provider, prompt: str, made: list[Attempt], seconds: float) -> Answer:
    worst = worst_attempt(provider, prompt)
    inputs = outputs = estimated = 0
    dollars = 0.0
    paid = [attempt for attempt in made if attempt.paid]
    for attempt in paid:
        reported = attempt.input_tokens, attempt.output_tokens
        tokens = [w if r is None else r for r, w in zip(reported, worst, strict=True)]
        inputs, outputs = inputs + tokens[0], outputs + tokens[1]
        estimated += None in reported
        price = provider.dollars(*tokens)
        dollars += price if attempt.dollars is None else attempt.dollars
    return Answer(
        text=made[-1].text,
        input_tokens=inputs,
        output_tokens=outputs,
        dollars=dollars,
        seconds=seconds,
        requests=len(paid),
        estimated=estimated,
        failure=made[-1].failure,
        provider=provider.name,
        model=provider.model,
    )


def cleaned(answer: Answer, provider: Provider, environment: Mapping[str, str]) -> Answer:
    """The answer as it may be kept: text that can be written, failures in one line, no secrets.

    Secrets are the values of the variables that the call was given beside PATH and HOME, and
    credentials in URLs and headers that a failure quotes.
    """
    secrets = [environment.get(name, "") for name in (provider.key_env, *provider.env)]
    text = _writable(without_secrets(answer.text, secrets))
    failure = answer.failure
    if failure is not None:
        failure = redacted(_writable(without_secrets(failure, secrets)))
        failure = " ".join(failure.split())[:LONGEST_FAILURE]
    return answer._replace(text=text, failure=failure)


def _writable(text: str) -> str:
    """Text without the halves of characters that JSON can hold and files cannot."""
    return text.encode(errors="replace").decode()
