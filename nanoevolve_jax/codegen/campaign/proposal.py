"""Runs a proposal from its prompt to certified code, in at most two tries.

Each try asks the provider, applies the edits of its answer and validates the new source. Every step
atomically writes a file to the proposal's folder. A step whose file exists is not repeated, so an
interrupted proposal is resumed by running it again.

  inputs.json prompt.txt                 question and provider
  try-1/request.json answer.json         call to the provider, see `mutators/calls.py`
  try-1/source.py verdict.json           edited source and the result of its validation
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
NO_EDIT = "no_edit"  # reason of a refusal if the answer is not an edit of the source


class Question(NamedTuple):
    """Question that a proposal sends to a provider, fixed before anything is sent."""

    slot: str
    source: str  # source of the parent, which is to be edited
    provider: str  # name of the profile
    prompt: str


class Steps(NamedTuple):
    """Functions and library that a proposal uses outside its folder."""

    ask: Callable[[str, str, Path], Awaitable[Answer]]  # takes (provider, prompt, call's folder)
    validate: Callable[[str, str], Awaitable[Verdict]]  # takes (slot, source)
    library: Library


class Result(NamedTuple):
    """Result of a proposal."""

    certified: Certified | None
    diff: str | None  # difference from the parent's source
    reason: str | None  # code of a refusal; None if certified, or if there was no answer
    message: str | None  # explanation of a refusal, or of a missing answer
    answers: tuple[Answer, ...]


class Round(NamedTuple):
    """Answer of one try and its outcome."""

    answer: Answer
    source: str | None  # edited source; None if the edits could not be applied
    wrong: str | None  # fault of the answer or of the source; None if there is none


class Rounds(NamedTuple):
    """All tries of a proposal."""

    rounds: tuple[Round, ...]
    stopped: str | None  # reason why a further try was not permitted

    @property
    def source(self) -> str | None:
        """Source that passed the check, or None if no source has passed."""
        last = self.rounds[-1] if self.rounds else None
        return last.source if last and last.wrong is None else None


async def pursue(folder: Path, question: Question, steps: Steps) -> Result:
    """Runs the remaining steps of a proposal.

    Args:
      folder: Folder of the proposal.
      question: Question of the proposal. It must be the same whenever the proposal is resumed.
      steps: Functions that ask the provider and validate sources, and the library of code.

    Returns:
      Result of the proposal, with the answers of all tries.

    Raises:
      CodegenError: If a file of the folder is damaged.
      ProviderError: If this machine lacks something that the provider needs.
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
    # If the second try has no answer, the outcome of the first try counts.
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
    """Asks for an edit and checks the new source, with a second try if the first one is faulty.

    The prompt of the second try quotes the first answer and its fault. There is no second try if
    the provider did not answer.

    Args:
      ask: Function that takes a prompt and the folder of a call, and returns the answer. It raises
        `NotPermitted` if the call must not be made.
      prompt: Prompt of the first try.
      source: Source that the answer edits.
      slot: Name of the slot, which is also the name of its function.
      folder: Folder of the proposal, in which `try-1` and `try-2` are created.
      check: Function that takes a new source and the folder of its try, and returns the fault of
        the source, or None.

    Returns:
      Answers and outcomes of all tries.
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
    """Returns an answer without its reasoning, or all of it if the reasoning has no end."""
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
    """Writes the question of a proposal and its target.

    Args:
      folder: Folder of the proposal; created if it is missing.
      question: Question of the proposal.
      target: Parent and slot that the proposal edits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PROMPT, question.prompt)
    inputs = _Inputs(question.slot, question.source, question.provider, target)
    write_json(folder / INPUTS, msgspec.to_builtins(inputs))


def read_question(folder: Path) -> tuple[Question, Target] | None:
    """Returns the question and target that `write_question` wrote, or None if there are none.

    Args:
      folder: Folder of the proposal.

    Raises:
      CodegenError: If a file is missing or damaged.
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
