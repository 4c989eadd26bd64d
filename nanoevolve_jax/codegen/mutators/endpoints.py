"""Attempts to get an answer from an OpenAI-compatible endpoint."""

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Any

from nanoevolve_jax.codegen.mutators import replies
from nanoevolve_jax.codegen.mutators.providers import Api
from nanoevolve_jax.codegen.mutators.replies import Attempt

NO_KEY = "none"  # key that is sent to an endpoint that does not need one
_READ_BY_CLIENT = re.compile(r"OPENAI_.*|.*_PROXY|SSL_CERT_.*", re.IGNORECASE)


async def attempt(provider: Api, prompt: str, environment: Mapping[str, str]) -> Attempt:
    """Sends a prompt once and returns the outcome. Failures are returned, not raised.

    The client's own retries are turned off. They would hide attempts that may have been billed, and
    would repeat requests after the quota of an account is exhausted.

    Args:
      provider: Profile of the endpoint.
      prompt: Text of the only message.
      environment: Environment variables of the call, including the one that contains the key.
    """
    import openai

    options: dict[str, Any] = {provider.limit_field: provider.max_output_tokens}
    if provider.temperature is not None:
        options["temperature"] = provider.temperature
    if provider.extra_body:
        options["extra_body"] = dict(provider.extra_body)
    late = Attempt(failure=f"no answer within {provider.timeout_seconds:g} s", again=True)
    try:
        async with (
            # The client's own time limit restarts with every byte that arrives.
            asyncio.timeout(provider.timeout_seconds),
            _client(provider, environment) as client,
        ):
            reply = await client.chat.completions.with_raw_response.create(
                model=provider.model, messages=[{"role": "user", "content": prompt}], **options
            )
            return replies.read(reply.http_response.content, reply.headers)
    except openai.APIStatusError as error:
        return replies.refused(error.status_code, error.body, error.response.headers)
    except (TimeoutError, openai.APITimeoutError):
        return late
    except openai.APIConnectionError as error:
        cause = error.__cause__
        reached = type(cause).__name__ not in ("ConnectError", "ConnectTimeout")
        failure = f"connection to {provider.base_url} failed: {cause or error}"
        return Attempt(failure=failure, paid=reached, again=True)
    except Exception as error:  # an endpoint may send malformed data of any kind
        return Attempt(failure=f"the reply cannot be read: {error!r}")


def _client(provider: Api, environment: Mapping[str, str]) -> Any:
    """Returns a client that reads only the environment variables of its profile.

    By default the client would also read keys, headers and proxies intended for other endpoints.
    """
    import openai

    names = [name for name in os.environ if _READ_BY_CLIENT.fullmatch(name)]
    hidden = {name: os.environ.pop(name) for name in names if name not in environment}
    try:
        return openai.AsyncOpenAI(
            api_key=environment.get(provider.key_env) or NO_KEY,
            base_url=provider.base_url,
            max_retries=0,
            timeout=provider.timeout_seconds,
        )
    finally:
        os.environ.update(hidden)
