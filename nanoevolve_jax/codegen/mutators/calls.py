"""Calls to providers, with retries, and their costs in the run folder.

Each call has its own folder. `request.json` is written before anything is sent, and `answer.json`
is written when the call has ended. A stored answer is reused and not paid for again. If the process
is killed between the two writes, the answer is lost. The next process then repeats the call, and
the lost call counts at the upper bound on its cost.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
from msgspec import Meta, structs

from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import commands, endpoints
from nanoevolve_jax.codegen.mutators.budget import (
    Limits,
    Spent,
    exceeded,
    total,
    worst_attempt,
    worst_call,
)
from nanoevolve_jax.codegen.mutators.credentials import redacted, without_secrets
from nanoevolve_jax.codegen.mutators.providers import (
    Api,
    Provider,
    ProviderError,
    from_json,
    missing,
    to_json,
)
from nanoevolve_jax.codegen.mutators.replies import Attempt
from nanoevolve_jax.execution.json_files import Count, read_json, write_json

FORMAT = 1
REQUEST, ANSWER = "request.json", "answer.json"
CALLS = "proposals/*/try-*"  # pattern of the calls' folders in a run folder
LONGEST_FAILURE = 500  # length of a failure's text, in characters

Amount = Annotated[float, Meta(ge=0)]
Permit = Callable[[Provider, str], str | None]


class Answer(msgspec.Struct, frozen=True):
    """Result of a call, which is also the content of `answer.json`."""

    text: str
    input_tokens: Count
    output_tokens: Count
    dollars: Amount
    seconds: Amount  # duration of the call, including pauses between attempts
    requests: Count  # number of attempts that may have been billed
    estimated: Count  # number of these attempts whose tokens are unknown; upper bounds are used
    failure: str | None  # reason why there is no text, as one line
    provider: str
    model: str
    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)] = FORMAT


class NotPermitted(CodegenError):
    """Error raised if a call is not made because it might exceed a limit."""


async def ask(
    provider: Provider, prompt: str, folder: Path, permit: Permit = lambda *_: None
) -> Answer:
    """Returns the answer to a prompt, reusing an answer that is already stored in the folder.

    Args:
      provider: Profile of the provider.
      prompt: Text of the only message of the call.
      folder: Folder of the call, used by no other call; created if it is missing.
      permit: Function that takes the profile and the prompt, and returns the reason why a new call
        must not be made, or None.

    Raises:
      NotPermitted: If `permit` returns a reason.
      ProviderError: If this machine lacks something that the provider needs.
      CodegenError: If a file of the folder is damaged.
    """
    if (answer := read_answer(folder)) is not None:
        return answer
    if lack := missing(provider):
        raise ProviderError(f"provider {provider.name} cannot be asked: {lack}")
    if reason := permit(provider, prompt):
        raise NotPermitted(reason)
    lost = lost_calls(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_request(folder, provider, prompt, lost)
    environment = environment_of(provider, os.environ)
    kind = endpoints if isinstance(provider, Api) else commands
    answer = await call(provider, prompt, lambda: kind.attempt(provider, prompt, environment))
    answer = cleaned(answer, provider, environment)
    write_json(folder / ANSWER, msgspec.to_builtins(answer))
    return answer


async def call(
    provider: Provider,
    prompt: str,
    attempt: Callable[[], Awaitable[Attempt]],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
    draw: Callable[[], float] = random.random,
) -> Answer:
    """Repeats an attempt until it succeeds, retrying is pointless, or the attempts are used up.

    The pause between two attempts is the wait that the provider requests. If it requests none, the
    pause doubles each time and is shortened at random by up to half, so that callers that failed at
    the same time do not retry at the same time.

    Args:
      provider: Profile of the provider.
      prompt: Prompt of the call, which bounds the cost of attempts whose tokens are unknown.
      attempt: Function that makes an attempt and raises no exception.
      sleep: Function that waits for the given number of seconds.
      clock: Function that returns the time in seconds.
      draw: Function that returns a random number in [0, 1).

    Returns:
      Answer with the summed cost of all attempts and the text or failure of the last one.
    """
    import tenacity

    attempts: list[Attempt] = []
    doubling = tenacity.wait_exponential(provider.backoff_seconds, provider.backoff_max_seconds)

    async def once() -> Attempt:
        attempts.append(await attempt())
        return attempts[-1]

    def is_worth_repeating(last: Attempt) -> bool:
        return last.again and (last.wait or 0.0) <= provider.backoff_max_seconds

    def pause(state: tenacity.RetryCallState) -> float:
        asked = attempts[-1].wait
        return doubling(state) * (1.0 - 0.5 * draw()) if asked is None else asked

    began = clock()
    last = await tenacity.AsyncRetrying(
        retry=tenacity.retry_if_result(is_worth_repeating),
        stop=tenacity.stop_after_attempt(provider.attempts),
        wait=pause,
        sleep=sleep,
        retry_error_callback=lambda state: state.outcome.result(),
    )(once)
    failure = last.failure
    if last.again and last.wait is not None and not is_worth_repeating(last):
        failure = f"{failure}; the endpoint asks to wait {last.wait:g} s"
    return _answer(provider, prompt, attempts, clock() - began, failure)


def _answer(
    provider: Provider, prompt: str, attempts: list[Attempt], seconds: float, failure: str | None
) -> Answer:
    worst = worst_attempt(provider, prompt)
    inputs = outputs = estimated = 0
    dollars = 0.0
    billed = [attempt for attempt in attempts if attempt.paid]
    for attempt in billed:
        reported = attempt.input_tokens, attempt.output_tokens
        tokens = [w if r is None else r for r, w in zip(reported, worst, strict=True)]
        inputs, outputs = inputs + tokens[0], outputs + tokens[1]
        estimated += None in reported
        dollars += provider.dollars(*tokens) if attempt.dollars is None else attempt.dollars
    return Answer(
        text=attempts[-1].text,
        input_tokens=inputs,
        output_tokens=outputs,
        dollars=dollars,
        seconds=seconds,
        requests=len(billed),
        estimated=estimated,
        failure=failure,
        provider=provider.name,
        model=provider.model,
    )


def environment_of(provider: Provider, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables of a call: PATH, HOME and those that its profile names.

    Args:
      provider: Profile of the provider.
      environment: Environment variables of this process.
    """
    names = ("PATH", "HOME", provider.key_env, *provider.env)
    return {name: environment[name] for name in names if name in environment}


def cleaned(answer: Answer, provider: Provider, environment: Mapping[str, str]) -> Answer:
    """Returns an answer that can be stored: valid Unicode without secrets, with one-line failures.

    Args:
      answer: Answer of the provider.
      provider: Profile of the provider, which names the variables that contain secrets.
      environment: Environment variables of the call.
    """
    secrets = [environment.get(name, "") for name in (provider.key_env, *provider.env)]

    def clean(text: str) -> str:
        return without_secrets(text, secrets).encode(errors="replace").decode()

    failure = answer.failure
    if failure is not None:
        failure = " ".join(redacted(clean(failure)).split())[:LONGEST_FAILURE]
    return structs.replace(answer, text=clean(answer.text), failure=failure)


# Files --------------------------------------------------------------------------------------


class _RequestDocument(TypedDict):
    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    provider: dict[str, Any]
    prompt: str
    lost: NotRequired[Count]  # number of earlier calls from this folder whose answers were lost


def write_request(folder: Path, provider: Provider, prompt: str, lost: int = 0) -> None:
    """Writes `request.json`, which must exist before a request is sent.

    Args:
      folder: Folder of the call.
      provider: Profile of the provider.
      prompt: Prompt of the call.
      lost: Number of earlier calls from the folder whose answers were lost.
    """
    document = {"provider": to_json(provider), "prompt": prompt, "lost": lost}
    write_json(folder / REQUEST, {"format": FORMAT} | document)


def read_answer(folder: Path) -> Answer | None:
    """Returns the answer that is stored in a call's folder, or None if there is none.

    Args:
      folder: Folder of the call.

    Raises:
      CodegenError: If the file is damaged.
    """
    document = _read(folder / ANSWER, Answer)
    return document and msgspec.convert(document, Answer)


def lost_calls(folder: Path) -> int:
    """Returns the number of calls from a folder that ended without a stored answer.

    A call that is under way in another process is counted too.

    Args:
      folder: Folder of the calls.

    Raises:
      CodegenError: If a file is damaged.
    """
    document = _read(folder / REQUEST, _RequestDocument)
    if document is None:
        return 0
    return document.get("lost", 0) + (read_answer(folder) is None)


def _read(path: Path, kind: type) -> Any:
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CodegenError(f"{path} is damaged: {error}") from None


def answers_of(directory: Path) -> list[Answer]:
    """Returns all answers that are stored in a run folder, in the order of its proposals.

    Args:
      directory: Run folder.

    Raises:
      CodegenError: If a file is damaged.
    """
    answers = (read_answer(folder) for folder in sorted(directory.glob(CALLS)))
    return [answer for answer in answers if answer is not None]


def cost_of(answers: Iterable[Answer]) -> Spent:
    """Returns the total cost of answers.

    Args:
      answers: Answers of calls that have ended.
    """
    return total(
        Spent(a.requests, a.input_tokens + a.output_tokens, a.dollars, a.seconds) for a in answers
    )


def lost_cost(directory: Path) -> Spent:
    """Returns an upper bound on the cost of the lost calls of a run folder.

    Args:
      directory: Run folder.

    Raises:
      CodegenError: If a file is damaged.
    """
    costs: list[Spent] = []
    for folder in sorted(directory.glob(CALLS)):
        if lost := lost_calls(folder):
            document = _read(folder / REQUEST, _RequestDocument)
            try:
                worst = worst_call(from_json(document["provider"]), document["prompt"])
            except ValueError as error:
                raise CodegenError(f"{folder / REQUEST} is damaged: {error}") from None
            costs += [worst] * lost
    return total(costs)


def permitted(limits: Limits, directory: Path, provider: Provider, prompt: str) -> str | None:
    """Returns a phrase about the limit that a new call might exceed, or None if it may be made.

    Args:
      limits: Limits on the total cost of the run folder.
      directory: Run folder.
      provider: Profile of the provider.
      prompt: Prompt of the new call.

    Raises:
      CodegenError: If a file of an earlier call is damaged.
    """
    spent = total([cost_of(answers_of(directory)), lost_cost(directory)])
    return exceeded(limits, spent, Spent(), worst_call(provider, prompt))
