"""An OpenAI-compatible server on this machine with scripted answers and faults.

`script(proposal, number, attempt)` returns the `Reply` to one request. `number` is the try of the
proposal, and `attempt` counts its requests from 1. Proposal and try are read from the first line of
the prompt, `Proposal 7, try 1: ...`; both are 0 if that line is missing. The answer to a proposal
therefore does not depend on the time of the request.
"""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_FIRST_LINE = re.compile(r"Proposal (\d+), try (\d+)")


class Reply(NamedTuple):
    """The reply to one request."""

    text: str = ""
    status: int = 200
    retry_after: str | None = None  # value of the Retry-After header
    headers: Mapping[str, str] = {}  # additional headers
    seconds: float = 0.0  # delay before the reply
    body: bytes | None = None  # raw body that replaces the completion
    cut: bool = False  # closes the connection without a reply
    trickle: bool = False  # sends one byte at a time without end
    usage: Any = True  # reported usage; True for the counted tokens, False to omit it
    message: Mapping[str, Any] | None = None  # message that replaces the default one
    finish_reason: str = "stop"


Script = Callable[[int, int, int], Reply]


def tokens(text: str) -> int:
    """Returns the number of tokens that the server counts."""
    return 1 + len(text) // 4


class Server:
    """Context manager that runs the server.

    Attributes:
      paid: Number of billed requests by (proposal, try).
      requests: Number of requests by (proposal, try).
      usage: Reported number of tokens by name, such as `prompt_tokens`.
      headers: Headers of the requests.
      bodies: Bodies of the requests.
    """

    def __init__(self, script: Script):
        self.script = script
        self.paid: Counter = Counter()
        self.requests: Counter = Counter()
        self.usage: Counter = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict] = []
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        """Returns the `base_url` for a profile."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.ending.set()
        self._http.shutdown()
        self._http.server_close()

    def receive(self, body: dict, headers: dict[str, str]) -> tuple[str, Reply]:
        """Counts a request and returns its prompt and the reply to it."""
        prompt = body["messages"][-1]["content"]
        match = _FIRST_LINE.match(prompt)
        at = (int(match[1]), int(match[2])) if match else (0, 0)
        with self._lock:
            self.requests[at] += 1
            self.headers.append(headers)
            self.bodies.append(body)
            reply = self.script(*at, self.requests[at])
            if reply.status == 200:  # a completion is billed even if the client has disconnected
                self.paid[at] += 1
                self.usage["prompt_tokens"] += tokens(prompt)
                self.usage["completion_tokens"] += tokens(reply.text)
        return prompt, reply


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt, reply = server.receive(body, dict(self.headers))
            if reply.seconds:
                server.ending.wait(reply.seconds)
            if reply.cut:
                self.close_connection = True
                self.connection.close()
                return
            content = reply.body
            if content is None:
                content = json.dumps(_completion(body, prompt, reply)).encode()
            self.send_response(reply.status)
            if reply.retry_after is not None:
                self.send_header("Retry-After", reply.retry_after)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(10**6 if reply.trickle else len(content)))
            self.end_headers()
            while reply.trickle and not server.ending.is_set():
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
            self.wfile.write(content)

        def handle(self):
            with contextlib.suppress(OSError):  # the client was killed or has disconnected
                super().handle()

        def finish(self):
            with contextlib.suppress(OSError):
                super().finish()

        def log_message(self, *_):
            pass

    return Handler


def _completion(body: dict, prompt: str, reply: Reply) -> dict:
    if reply.status != 200:
        return {"error": {"message": reply.text or "scripted", "type": "scripted", "code": None}}
    used = {"prompt_tokens": tokens(prompt), "completion_tokens": tokens(reply.text)}
    message = reply.message or {"role": "assistant", "content": reply.text}
    usage = used | {"total_tokens": sum(used.values())} if reply.usage is True else reply.usage
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
    } | ({"usage": usage} if reply.usage is not False else {})
