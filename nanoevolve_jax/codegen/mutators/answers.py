"""What a provider gave for what it cost, and where it is kept: one file a call.

`DIR/proposals/0007/try-1/answer.json` is the answer to `request.json` beside it.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

from msgspec import Meta

from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.execution.json_files import Count, decode, typed, write_json
from nanoevolve_jax.execution.plain_files import read_plain

FORMAT = 1
REQUEST, ANSWER = "request.json", "answer.json"
CALLS = "proposals/*/try-*"
"""Where the calls of a run folder lie."""


class Answer(NamedTuple):
    """The end of one call."""

    text: str
    input_tokens: int
    output_tokens: int
    dollars: float
    seconds: float  # of waiting, pauses between attempts included
    requests: int  # attempts that may have been paid
    estimated: int  # of them, those whose tokens nobody reported: they count as the most possible
    failure: str | None  # one line
    provider: str
    model: str


class _AnswerDocument(TypedDict):
    text: str
    input_tokens: Count
    output_tokens: Count
    dollars: Annotated[float, Meta(ge=0)]
    seconds: Annotated[float, Meta(ge=0)]
    requests: Count
    estimated: Count
    failure: str | None
    provider: str
    model: str


def write_answer(folder: Path, answer: Answer) -> None:
    """Writes a call's answer whole or not at all."""
    write_json(folder / ANSWER, {"format": FORMAT} | answer._asdict())


def read_answer(folder: Path) -> Answer | None:
    """A call's answer; None if it has none yet.

    Raises:
      CodegenError: if the file is damaged.
    """
    document = read_document(folder / ANSWER)
    if document is None:
        return None
    try:
        typed(document, _AnswerDocument)
    except ValueError as error:
        raise CodegenError(f"{folder / ANSWER} is damaged: {error}") from None
    return Answer(**{name: document[name] for name in Answer._fields})


def read_document(path: Path) -> dict[str, Any] | None:
    """A JSON file of this format; None if there is none.

    Raises:
      CodegenError: if it is damaged or of another format.
    """
    try:
        document = decode(read_plain(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CodegenError(f"{path} is damaged: {error}") from None
    found = document.get("format") if isinstance(document, dict) else document
    if found != FORMAT:
        raise CodegenError(f"{path} has format {found!r}; allowed: {FORMAT}")
    return document


def call_folders(directory: Path) -> list[Path]:
    """Folders of all calls of a run folder, in order, answered or not."""
    return sorted(path.parent for path in directory.glob(f"{CALLS}/{REQUEST}"))


def answers_of(directory: Path) -> list[Answer]:
    """All answers of a run folder, in the order of its proposals."""
    found = map(read_answer, call_folders(directory))
    return [answer for answer in found if answer is not None]
