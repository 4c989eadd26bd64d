"""A connection to the jobs server of a Ray cluster; whatever goes wrong with it in one line.

An address is `http://HOST:PORT` of a cluster's jobs server, `local` for a Ray of one's own, or
`local:DIR` for one whose file lies elsewhere than in `cache/cluster`. Needs the extra `ray`.
"""

import contextlib
import importlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nanoevolve_jax.data.files import expanded
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.execution.settings import ConfigError

LOCAL = "local"
_PLACE = Path("cache") / "cluster"
_FIRST_NODE_SECONDS = 30.0
_ANSWER_SECONDS = 60.0  # for the next byte of an answer
_TICK = 0.2
# Loggers that tell of every package that is sent.
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")


class Server(NamedTuple):
    """A jobs server that answers."""

    url: str
    client: Any  # JobSubmissionClient
    headers: dict[str, str]

    def nodes(self) -> list[dict[str, float]]:
        """What each living node has in all, by resource: `CPU`, `GPU` and others.

        Waits for the first node of a cluster that has just begun; none if none comes.
        """
        from ray.util.state import StateApiClient
        from ray.util.state.common import ListApiOptions, StateResource

        api = StateApiClient(self.url, headers=self.headers or None)
        until = time.monotonic() + _FIRST_NODE_SECONDS
        while True:
            found = api.list(StateResource.NODES, ListApiOptions(detail=True), True)
            alive = [node.resources_total or {} for node in found if node.state == "ALIVE"]
            if alive or time.monotonic() > until:
                return alive
            time.sleep(_TICK)


@contextlib.contextmanager
def connected(address: str, *, start: bool = False) -> Iterator[Server | None]:
    """The server at an address; None if that is local and no Ray runs there.

    Args:
      address: see the module.
      start: whether to start a local Ray that does not run.

    Raises:
      ConfigError: if Ray is not installed.
      ClusterError: if it cannot be reached, or what is asked of it inside goes wrong.
    """
    head = _head()
    place, url = local_place(address), address
    if place is not None:
        url = head.start(place) if start else head.find(place)
    elif not re.fullmatch(r"https?://[^\s/]+/?", address):
        raise ClusterError(
            f"address is {address!r}; allowed: local, local:DIR, or http://HOST:PORT of a "
            "cluster's jobs server"
        )
    for module in _TALKATIVE:
        logging.getLogger(module).setLevel(logging.ERROR)
    try:
        headers = _headers(local=place is not None)
        yield url and Server(url, _client(url, headers), headers)
    except ClusterError:
        raise
    except Exception as error:  # of Ray, of HTTP, of the system: all say that it did not work
        # Errors of the server come as its traceback, whose last line says what is wrong.
        lines = [line for line in str(error).splitlines() if line.strip(" .")]
        raise ClusterError(
            f"address is {address!r}, where a job cannot be handled ({type(error).__name__}: "
            f"{(lines or ['no reason given'])[-1][:300]}); allowed: local, or http://HOST:PORT of "
            "a cluster that runs"
        ) from None


def _client(url: str, headers: dict[str, str]) -> Any:
    """Returns Ray's client of a jobs server, with a limit on the time that an answer may take."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *arguments: Any, **more: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": _ANSWER_SECONDS} | more)

    return Client(url, headers=headers)


def local_place(address: str) -> Path | None:
    """The folder of a local Ray's file; None for a cluster elsewhere."""
    kind, _, folder = address.partition(":")
    return None if kind != LOCAL else Path(folder) if folder else _PLACE


def absolute(address: str, cache: Path) -> str:
    """The address in a form that holds in any folder of this machine.

    Args:
      address: see the module.
      cache: folder that the file of `local` lies in.
    """
    place = cache / _PLACE.name if address == LOCAL else local_place(address)
    return address if place is None else f"{LOCAL}:{expanded(place).absolute()}"


def end_local(address: str) -> bool:
    """Ends a local Ray and its jobs; False if none runs.

    Raises:
      ClusterError: if the address is not a local one.
      ConfigError: if Ray is not installed.
    """
    place = local_place(address)
    if place is None:
        raise ClusterError(f"address is {address!r}; allowed: local or local:DIR, which run here")
    return _head().stop(place)


def _head() -> Any:
    """The module `head`.

    Raises:
      ConfigError: if Ray is not installed.
    """
    try:
        from nanoevolve_jax.codegen.deployment import head

        for name in ("ray", "ray.job_submission"):  # `head` has turned automatic starts off
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"deployment needs Ray, which cannot be imported ({error}); allowed: after "
            "`pip install 'nanoevolve-jax[ray]'`"
        ) from None
    return head


def _headers(*, local: bool) -> dict[str, str]:
    """Ray's own token, if there is one, from the places where Ray looks for it.

    Args:
      local: for a Ray of one's own, which knows the file but no variable with a token in it.
    """
    token = "" if local else os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"))
    with contextlib.suppress(OSError):
        token = token or file.read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}
