"""A reply that an endpoint sends as events although none were asked for, put together again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def decoded(body: bytes) -> Any:
    """Returns the JSON of a body, or the reply that its events are the parts of.

    Raises:
      ValueError: if it is neither.
      RecursionError: if it is nested too deeply.
    """
    try:
        return json.loads(body)
    except ValueError:
        lines = (line.strip() for line in body.decode().split("\n"))
        data = [line.removeprefix("data:").strip() for line in lines if not _is_other(line)]
        events = [json.loads(text) for text in data if text and text != "[DONE]"]
        if not events or not all(isinstance(event, Mapping) for event in events):
            raise
        return events[0] if len(events) == 1 else _whole(events)


def _is_other(line: str) -> bool:
    """Whether a line of events is a comment or a field other than `data`."""
    return line.startswith((":", "event:", "id:", "retry:"))


def _whole(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The reply of some parts; one without an end has broken off."""
    texts: list[str] = []
    whole: dict[str, Any] = {"usage": None}
    reason = None
    for event in events:
        whole["usage"] = event.get("usage") or whole["usage"]
        if event.get("error"):
            return whole | {"error": event["error"]}
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(choice, Mapping):
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, Mapping) else None
            texts.append(text if isinstance(text, str) else "")
            reason = choice.get("finish_reason") or reason
    message = {"content": "".join(texts)}
    return whole | {"choices": [{"message": message, "finish_reason": reason or "error"}]}
