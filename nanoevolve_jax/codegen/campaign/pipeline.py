"""One proposal from its prompt to certified code: asked, edited, validated, and once more.

Every step leaves a file, whole or not at all, in the proposal's folder, and a step whose file is
there is not done again. So a proposal that a kill has interrupted is simply pursued again.

  inputs.json prompt.txt                 what is asked, of whom
  try-1/request.json answer.json ...     a call, see `ask.py`
  try-1/verdict.json                     what became of its answer
"""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.jail.certify import Verdict
from nanoevolve_jax.codegen.mutators import edits
from nanoevolve_jax.codegen.mutators.answers import Answer
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.execution.json_files import write_json, write_whole
from nanoevolve_jax.policy.certified import Certified

TRIES = 2
INPUTS, PROMPT, VERDICT = "inputs.json", "prompt.txt", "verdict.json"
NO_ANSWER = "answer"  # beside the jail's reasons: the answer is no edit of the source


class Request(NamedTuple):
    """What a proposal is made of, fixed before anything is asked."""

    slot: str
    source: str  # of the parent, which is edited
    provider: str
    prompt: str


class Steps(NamedTuple):
    """What a pipeline does to the world; safe to be called from threads."""

    ask: Callable[[str, str, Path], Answer]  # provider, prompt, folder of the call
    complain: Callable[[str, str, str], str]  # prompt, answer, what was wrong
    validate: Callable[[str, str], Verdict]  # slot, source
    library: Library


class Proposed(NamedTuple):
    """How a proposal ended."""

    certified: Certified | None
    diff: str | None  # against the parent's source
    reason: str | None  # a refusal's code; None with a certificate, or without an answer
    message: str | None  # the same in a line, or why there was no answer
    answers: tuple[Answer, ...]


def pursue(folder: Path, request: Request, steps: Steps) -> Proposed:
    """Runs what is left of a proposal.

    Args:
      folder: of the proposal alone.
      request: the same one every time.
      steps: see there.
    """
    prompt, answers = request.prompt, []
    proposed = None
    for number in range(1, TRIES + 1):
        place = folder / f"try-{number}"
        answer = steps.ask(request.provider, prompt, place)
        answers.append(answer)
        if answer.failure is not None:
            # Not an answer: nothing is known against the code, if there was any before.
            ended = proposed or Proposed(None, None, None, answer.failure, ())
            return ended._replace(answers=tuple(answers))
        proposed = _judged(place, answer, request, steps)._replace(answers=tuple(answers))
        if proposed.certified is not None:
            return proposed
        prompt = steps.complain(request.prompt, answer.text, proposed.message)
    return proposed


def _judged(place: Path, answer: Answer, request: Request, steps: Steps) -> Proposed:
    """What becomes of one answer."""
    path = place / VERDICT
    if not path.exists():
        write_json(path, _verdict(place, answer, request, steps))
    verdict = json.loads(path.read_text(encoding="utf-8"))
    name = verdict["certificate"]
    return Proposed(
        certified=steps.library.get(name) if name else None,
        diff=verdict["diff"],
        reason=verdict["reason"],
        message=verdict["message"],
        answers=(),
    )


def _verdict(place: Path, answer: Answer, request: Request, steps: Steps) -> dict[str, Any]:
    verdict = dict.fromkeys(("certificate", "diff", "reason", "message"))
    try:
        source = edits.apply(answer.text, request.source, request.slot)
    except edits.EditError as error:
        return verdict | {"reason": NO_ANSWER, "message": str(error)}
    write_whole(place / "source.py", source)
    found = steps.validate(request.slot, source)
    if found.refusal is not None:
        return verdict | {"reason": found.refusal.reason, "message": found.refusal.message}
    steps.library.put(found.certified)
    lines = (text.splitlines() for text in (request.source, found.certified.source))
    diff = "\n".join(difflib.unified_diff(*lines, "parent", "child", lineterm=""))
    return verdict | {"certificate": found.certified.id, "diff": diff}


def write_request(folder: Path, request: Request, more: dict[str, Any]) -> None:
    """Fixes a request; the same one is read ever after."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PROMPT, request.prompt)
    document = request._asdict() | more
    del document["prompt"]
    write_json(folder / INPUTS, document)


def read_request(folder: Path) -> tuple[Request, dict[str, Any]] | None:
    """The request of a folder and what was kept with it; None if it has none yet.

    Raises:
      CodegenError: if it is damaged.
    """
    path = folder / INPUTS
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        prompt = (folder / PROMPT).read_text(encoding="utf-8")
        own = {name: document.pop(name) for name in ("slot", "source", "provider")}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CodegenError(f"{path} is damaged: {error!r}") from None
    return Request(**own, prompt=prompt), document
