"""One attempt at an OpenAI-compatible endpoint."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nanoevolve_jax.codegen.mutators import replies
from nanoevolve_jax.codegen.mutators.attempts import Attempt
from nanoevolve_jax.codegen.mutators.providers import EXTRA, Provider

NO_KEY = "none"
"""What an endpoint without a key is told."""


class _TimeUp(Exception):
    """The attempt took too long."""


def asker(provider: Provider, prompt: str, environment: Mapping[str, str]) -> Callable[[], Attempt]:
    """Prepares a client; what it gives asks once.

    To be called in the main thread of its process, because its time limit is an alarm.

    Args:
      provider: of kind 'api'.
      prompt: the one message.
      environment: where the key is.
    """
    try:
        import openai
    except ImportError:
        failure = f"the package openai is not installed; pip install '{EXTRA}'"
        return lambda: Attempt(failure=failure, paid=False)
    client = openai.OpenAI(
        api_key=environment.get(provider.key_env) or NO_KEY,
        base_url=provider.base_url,
        max_retries=0,  # its own would hide what may have been paid
        timeout=provider.timeout_seconds,
    )
    return lambda: _attempt(client, provider, prompt)


def _attempt(client: Any, provider: Provider, prompt: str) -> Attempt:
    import openai

    options: dict[str, Any] = {provider.limit_field: provider.max_output_tokens}
    if provider.temperature is not None:
        options["temperature"] = provider.temperature
    if provider.extra_body:
        options["extra_body"] = dict(provider.extra_body)
    messages = [{"role": "user", "content": prompt}]
    try:
        with _alarm(provider.timeout_seconds):
            reply = client.chat.completions.with_raw_response.create(
                model=provider.model, messages=messages, **options
            )
            return replies.read(reply.http_response.content, reply.headers)
    except openai.APIStatusError as error:
        return replies.refused(error.status_code, error.body, error.response.headers)
    except (openai.APITimeoutError, _TimeUp):
        return Attempt(failure=f"no answer within {provider.timeout_seconds:g} s", again=True)
    except openai.APIConnectionError as error:
        return _unconnected(error, provider)
    except Exception as error:  # whatever else an endpoint sends
        return Attempt(failure=f"the reply cannot be read: {error!r}")


def _unconnected(error: Exception, provider: Provider) -> Attempt:
    """An attempt that never reached the endpoint, or was cut off."""
    cause = error.__cause__
    if isinstance(cause, _TimeUp):
        return Attempt(failure=f"no answer within {provider.timeout_seconds:g} s", again=True)
    reached = type(cause).__name__ not in ("ConnectError", "ConnectTimeout")
    failure = f"connection to {provider.base_url} failed: {cause or error}"
    return Attempt(failure=failure, paid=reached, again=True)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Ends what takes too long; an HTTP client's own limit starts again with every byte."""

    def up(*_):
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
