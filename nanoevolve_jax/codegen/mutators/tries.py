"""One proposal of one provider: prompt, answer, edit; a bad answer is told so, once."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nanoevolve_jax.codegen.mutators import edits
from nanoevolve_jax.codegen.mutators.answers import Answer
from nanoevolve_jax.codegen.mutators.ask import NotPermitted
from nanoevolve_jax.codegen.mutators.markup import plain
from nanoevolve_jax.codegen.mutators.prompts import complaint
from nanoevolve_jax.codegen.mutators.reasoning import without_reasoning
from nanoevolve_jax.execution.plain_files import write_whole

TRIES = 2
SOURCE = "source.py"


class Try(NamedTuple):
    """One answer and what became of it."""

    answer: Answer
    source: str | None  # None: no source came of it
    wrong: str | None  # in words; None: the source is good


class Proposal(NamedTuple):
    """What a provider made of a prompt."""

    tries: tuple[Try, ...]
    stopped: str | None  # why a further try was not permitted

    @property
    def source(self) -> str | None:
        """The new source; None: there is no good one."""
        last = self.tries[-1] if self.tries else None
        return last.source if last and last.wrong is None else None

    @property
    def wrong(self) -> str | None:
        """What was wrong in the end; None: nothing."""
        return self.stopped or (self.tries[-1].wrong if self.tries else None)


def propose(
    ask: Callable[[str, Path], Answer],
    prompt: str,
    source: str,
    slot: str,
    folder: Path,
    judge: Callable[[str, Path], str | None],
) -> Proposal:
    """Asks, edits, and asks again if that fails; what the folder already has is not done again.

    Args:
      ask: from a prompt and the folder of a call to its answer; may raise `NotPermitted`.
      prompt: of the first try.
      source: what the answer edits, as the prompt shows it.
      slot: the function's name.
      folder: of the proposal; `try-1` and `try-2` are made in it.
      judge: what is wrong with a new source, given the folder of its try; None: nothing.
    """
    tries: list[Try] = []
    asked = prompt
    for count in range(1, TRIES + 1):
        place = folder / f"try-{count}"
        try:
            answer = ask(asked, place)
        except NotPermitted as error:
            return Proposal(tuple(tries), str(error))
        tries.append(_judged(answer, source, slot, place, judge))
        if tries[-1].wrong is None or answer.failure is not None:
            break
        asked = complaint(prompt, _quotable(answer.text), tries[-1].wrong)
    return Proposal(tuple(tries), None)


def _quotable(text: str) -> str:
    """An answer as the second prompt quotes it: without its reasoning if that has an end."""
    try:
        return without_reasoning(plain(text))
    except edits.EditError:
        return text


def _judged(
    answer: Answer,
    source: str,
    slot: str,
    place: Path,
    judge: Callable[[str, Path], str | None],
) -> Try:
    if answer.failure is not None:
        return Try(answer, None, f"{answer.provider} failed: {answer.failure}")
    try:
        edited = edits.apply(answer.text, source, slot)
    except edits.EditError as error:
        return Try(answer, None, str(error))
    write_whole(place / SOURCE, edited)
    return Try(answer, edited, judge(edited, place))
