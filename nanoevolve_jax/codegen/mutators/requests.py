"""What a call asks of whom, as a file; its answer will lie beside it."""

from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators.answers import FORMAT, REQUEST, read_document
from nanoevolve_jax.codegen.mutators.providers import Provider, from_json, to_json
from nanoevolve_jax.execution.json_files import typed, write_json


class Request(NamedTuple):
    """One call."""

    provider: Provider
    prompt: str


class _RequestDocument(TypedDict):
    provider: dict[str, Any]
    prompt: str


def write_request(folder: Path, request: Request) -> None:
    """Writes a request whole or not at all."""
    document = {"provider": to_json(request.provider), "prompt": request.prompt}
    write_json(folder / REQUEST, {"format": FORMAT} | document)


def read_request(folder: Path) -> Request | None:
    """The request in a folder; None if there is none.

    Raises:
      CodegenError: if the file is damaged.
    """
    document = read_document(folder / REQUEST)
    if document is None:
        return None
    try:
        typed(document, _RequestDocument)
        return Request(from_json(document["provider"]), document["prompt"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CodegenError(f"{folder / REQUEST} is damaged: {error}") from None
