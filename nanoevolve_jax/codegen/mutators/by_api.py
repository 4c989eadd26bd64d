"""One attempt at an OpenAI-compatible endpoint."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nanoevolve_jax.codegen.mutators.attempts import Attempt
from nanoevolve_jax.codegen.mutators.providers import EXTRA, Provider

# Gateways that gave up on whoever they asked: that one may have worked, and may be paid.
_PERHAPS_PAID = (408, 502, 504)
_AGAIN = (408, 409, 425, 429)
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
            return _read(
                client.chat.completions.create(model=provider.model, messages=messages, **options)
            )
    except openai.APIStatusError as error:
        return _refused(error)
    except (openai.APITimeoutError, _TimeUp):
        return Attempt(failure=f"no answer within {provider.timeout_seconds:g} s", again=True)
    except openai.APIConnectionError as error:
        return _unconnected(error, provider)
    except Exception as error:  # a reply that is no JSON, or whatever else an endpoint sends
        return Attempt(failure=f"the reply cannot be read: {error!r}")


def _read(completion: Any) -> Attempt:
    """An attempt from a completion, which is as it was sent: nothing in it is certain."""
    usage = getattr(completion, "usage", None)
    tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    known = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in tokens)
    inputs, outputs = tokens if known else (None, None)
    choices = getattr(completion, "choices", None)
    text, reason = None, "no choices"
    if isinstance(choices, list) and choices:
        text = getattr(getattr(choices[0], "message", None), "content", None)
        reason = f"finish_reason {getattr(choices[0], 'finish_reason', None)!r}"
    if not isinstance(text, str) or not text.strip():
        return Attempt("", inputs, outputs, failure=f"the reply holds no text: {reason}")
    return Attempt(text, inputs, outputs)


def _refused(error: Any) -> Attempt:
    """An attempt that ended with a status of 4xx or 5xx."""
    status = error.status_code
    wait = None
    with contextlib.suppress(TypeError, ValueError):
        wait = max(float(error.response.headers.get("retry-after")), 0.0)
    return Attempt(
        failure=f"status {status}: {error.message}",
        paid=status in _PERHAPS_PAID,
        again=status in _AGAIN or status >= 500,
        wait=wait,
    )


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
