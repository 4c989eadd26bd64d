"""One proposal from its prompt to certified code: asked, edited, validated, at most twice.

Every step leaves a file in the proposal's folder, whole or not at all. A step whose file is there
is not repeated, so a proposal that was interrupted is simply pursued again.

  inputs.json prompt.txt                 what is asked, and of which provider
  try-1/request.json answer.json         a call, see `mutators/calls.py`
  try-1/source.py verdict.json           the edited source, and the result of its validation
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import msgspec

from nanoevolve_jax.codegen.campaign.state import Target
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import edits
from nanoevolve_jax.codegen.mutators.calls import Answer, NotPermitted
from nanoevolve_jax.codegen.mutators.markup import plain, without_reasoning
from nanoevolve_jax.codegen.mutators.prompts import complaint
from nanoevolve_jax.codegen.sandbox.certify import Verdict
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.evolution.proposals import unified_diff
from nanoevolve_jax.execution.json_files import Id, read_json, write_json
from nanoevolve_jax.execution.plain_files import read_plain, write_whole
from nanoevolve_jax.policy.certified import Certified
from nanoevolve_jax.policy.slots import SLOTS

ROUNDS = 2
INPUTS, PROMPT, SOURCE, VERDICT = "inputs.json", "prompt.txt", "source.py", "verdict.json"
NO_EDIT = "no_edit"  # reason beside those of validation: the answer is not an edit of the source


class Question(NamedTuple):
    """What a proposal asks, fixed before anything is sent."""

    slot: str
    source: str  # source of the parent, which is edited
    provider: str
    prompt: str


class Steps(NamedTuple):
    """What pursuing a proposal does outside of its folder."""

    ask: Callable[[str, str, Path], Awaitable[Answer]]  # takes provider, prompt, folder of the call
    validate: Callable[[str, str], Awaitable[Verdict]]  # takes slot, source
    library: Library


class Result(NamedTuple):
    """How a proposal ended."""

    certified: Certified | None
    diff: str | None  # difference from the parent's source
    reason: str | None  # code of a refusal; None with a certificate, or without an answer
    message: str | None  # explanation of a refusal, or why there was no answer
    answers: tuple[Answer, ...]


class Round(NamedTuple):
    """One answer and what came of it."""

    answer: Answer
    source: str | None  # edited source; None if the answer gives none
    wrong: str | None  # what is wrong with the answer or the source; None if nothing is


class Rounds(NamedTuple):
    """All tries of a proposal."""

    rounds: tuple[Round, ...]
    stopped: str | None  # why a further try was not permitted

    @property
    def source(self) -> str | None:
        """The new source; None if there is no good one."""
        last = self.rounds[-1] if self.rounds else None
        return last.source if last and last.wrong is None else None


async def pursue(folder: Path, question: Question, steps: Steps) -> Result:
    """Does what is left of a proposal.

    Args:
      folder: Folder of the proposal.
      question: The same question each time.
      steps: Provider, validation and library.
    """
    verdicts: list[dict[str, Any]] = []

    async def check(source: str, place: Path) -> str | None:
        path = place / VERDICT
        if not path.exists():
            write_json(path, await _validated(source, question, steps))
        try:
            verdicts.append(read_json(path, _VerdictDocument))
        except (OSError, ValueError) as error:
            raise CodegenError(str(error)) from None
        return verdicts[-1]["message"]

    async def ask(prompt: str, place: Path) -> Answer:
        return await steps.ask(question.provider, prompt, place)

    prompt, source, slot = question.prompt, question.source, question.slot
    rounds = await ask_twice(ask, prompt, source, slot, folder, check)
    answers = tuple(each.answer for each in rounds.rounds)
    answered = [each for each in rounds.rounds if each.answer.failure is None]
    if not answered:
        return Result(None, None, None, answers[-1].failure, answers)
    # A second try without an answer says nothing against the code of the first.
    if answered[-1].source is None:
        return Result(None, None, NO_EDIT, answered[-1].wrong, answers)
    verdict = verdicts[-1]
    id = verdict["certificate"]
    certified = steps.library.get(id) if id else None
    return Result(certified, verdict["diff"], verdict["reason"], verdict["message"], answers)


async def _validated(source: str, question: Question, steps: Steps) -> dict[str, Any]:
    document = dict.fromkeys(("certificate", "diff", "reason", "message"))
    verdict = await steps.validate(question.slot, source)
    if verdict.refusal is not None:
        return document | {"reason": verdict.refusal.reason, "message": verdict.refusal.message}
    steps.library.put(verdict.certified)
    diff = unified_diff(question.source, verdict.certified.source)
    return document | {"certificate": verdict.certified.id, "diff": diff}


async def ask_twice(
    ask: Callable[[str, Path], Awaitable[Answer]],
    prompt: str,
    source: str,
    slot: str,
    folder: Path,
    check: Callable[[str, Path], Awaitable[str | None]],
) -> Rounds:
    """Asks, edits and checks; if something is wrong, asks once more and quotes what it was.

    Args:
      ask: Takes a prompt and the folder of a call; may raise `NotPermitted`.
      prompt: Prompt of the first try.
      source: Source that the answer edits.
      slot: Name of the function.
      folder: Folder of the proposal, in which `try-1` and `try-2` are created.
      check: Takes a new source and the folder of its try; returns what is wrong, or None.
    """
    rounds: list[Round] = []
    asked = prompt
    for count in range(1, ROUNDS + 1):
        place = folder / f"try-{count}"
        try:
            answer = await ask(asked, place)
        except NotPermitted as error:
            return Rounds(tuple(rounds), str(error))
        edited, wrong = None, None
        if answer.failure is not None:
            wrong = f"{answer.provider} failed: {answer.failure}"
        else:
            try:
                edited = edits.apply(answer.text, source, slot)
            except edits.EditError as error:
                wrong = str(error)
            else:
                write_whole(place / SOURCE, edited)
                wrong = await check(edited, place)
        rounds.append(Round(answer, edited, wrong))
        if wrong is None or answer.failure is not None:
            break
        asked = complaint(prompt, _quotable(answer.text), wrong)
    return Rounds(tuple(rounds), None)


def _quotable(text: str) -> str:
    """Returns an answer without its reasoning, unless that has no end."""
    try:
        return without_reasoning(plain(text))
    except edits.EditError:
        return text


# Files --------------------------------------------------------------------------------------


class _VerdictDocument(TypedDict):
    certificate: Id | None
    diff: str | None
    reason: str | None
    message: str | None


class _Inputs(msgspec.Struct, frozen=True):
    slot: Literal[tuple(SLOTS)]
    source: str
    provider: str
    target: Target = msgspec.field(name="aim")


def write_question(folder: Path, question: Question, target: Target) -> None:
    """Writes a question; from then on `read_question` returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PROMPT, question.prompt)
    inputs = _Inputs(question.slot, question.source, question.provider, target)
    write_json(folder / INPUTS, msgspec.to_builtins(inputs))


def read_question(folder: Path) -> tuple[Question, Target] | None:
    """Returns the question of a folder and its target; None if it has none yet.

    Raises:
      CodegenError: If a file is damaged.
    """
    path = folder / INPUTS
    if not path.exists():
        return None
    try:
        inputs = msgspec.convert(read_json(path, _Inputs), _Inputs)
        prompt = read_plain(folder / PROMPT).decode()
    except (OSError, ValueError) as error:
        raise CodegenError(f"{path} is damaged: {error}") from None
    return Question(inputs.slot, inputs.source, inputs.provider, prompt), inputs.target
