"""One proposal from its prompt to certified code: asked, edited, validated, and once more.

Every step leaves a file, whole or not at all, in the proposal's folder, and a step whose file is
there is not done again. So a proposal that a kill has interrupted is simply pursued again.

  inputs.json prompt.txt                 what is asked, of whom
  try-1/request.json answer.json ...     a call, see `ask.py`
  try-1/source.py verdict.json           what came of its answer, and what the jail says of that
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators.answers import Answer
from nanoevolve_jax.codegen.mutators.tries import propose
from nanoevolve_jax.codegen.sandbox.certify import Verdict
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.evolution.proposals import unified_diff
from nanoevolve_jax.execution.json_files import Count, Id, read_json, write_json
from nanoevolve_jax.execution.plain_files import read_plain, write_whole
from nanoevolve_jax.policy.certified import Certified
from nanoevolve_jax.policy.slots import SLOTS

INPUTS, PROMPT, VERDICT = "inputs.json", "prompt.txt", "verdict.json"
NO_EDIT = "no_edit"  # beside the jail's reasons: the answer is no edit of the source


class Brief(NamedTuple):
    """What a proposal is made of, fixed before anything is asked."""

    slot: str
    source: str  # of the parent, which is edited
    provider: str
    prompt: str


class Steps(NamedTuple):
    """What a pipeline does to the world; safe to be called from threads."""

    ask: Callable[[str, str, Path], Answer]  # provider, prompt, folder of the call
    validate: Callable[[str, str], Verdict]  # slot, source
    library: Library


class Proposed(NamedTuple):
    """How a proposal ended."""

    certified: Certified | None
    diff: str | None  # against the parent's source
    reason: str | None  # a refusal's code; None with a certificate, or without an answer
    message: str | None  # the same in a line, or why there was no answer
    answers: tuple[Answer, ...]


def pursue(folder: Path, brief: Brief, steps: Steps) -> Proposed:
    """Runs what is left of a proposal.

    Args:
      folder: of the proposal alone.
      brief: the same one every time.
      steps: see there.
    """
    verdicts: list[dict[str, Any]] = []

    def judge(source: str, place: Path) -> str | None:
        verdicts.append(_verdict(place / VERDICT, source, brief, steps))
        return verdicts[-1]["message"]

    ask = functools.partial(steps.ask, brief.provider)
    tries = propose(ask, brief.prompt, brief.source, brief.slot, folder, judge).tries
    answers = tuple(each.answer for each in tries)
    answered = [each for each in tries if each.answer.failure is None]
    if not answered:
        return Proposed(None, None, None, answers[-1].failure, answers)
    # No answer to the second try says nothing against the code of the first.
    if answered[-1].source is None:
        return Proposed(None, None, NO_EDIT, answered[-1].wrong, answers)
    verdict = verdicts[-1]
    name = verdict["certificate"]
    certified = steps.library.get(name) if name else None
    return Proposed(certified, verdict["diff"], verdict["reason"], verdict["message"], answers)


def _verdict(path: Path, source: str, brief: Brief, steps: Steps) -> dict[str, Any]:
    """What validation says of a source; asked once, and kept."""
    if not path.exists():
        write_json(path, _validated(source, brief, steps))
    try:
        return read_json(path, _VerdictDocument)
    except (OSError, ValueError) as error:
        raise CodegenError(str(error)) from None


def _validated(source: str, brief: Brief, steps: Steps) -> dict[str, Any]:
    verdict = dict.fromkeys(("certificate", "diff", "reason", "message"))
    found = steps.validate(brief.slot, source)
    if found.refusal is not None:
        return verdict | {"reason": found.refusal.reason, "message": found.refusal.message}
    steps.library.put(found.certified)
    diff = unified_diff(brief.source, found.certified.source)
    return verdict | {"certificate": found.certified.id, "diff": diff}


class _VerdictDocument(TypedDict):
    certificate: Id | None
    diff: str | None
    reason: str | None
    message: str | None


class _AimDocument(TypedDict):
    number: Count
    island: Count
    slot: Literal[tuple(SLOTS)]
    parent: Id
    shown: list[Id]


class _BriefDocument(TypedDict):
    slot: Literal[tuple(SLOTS)]
    source: str
    provider: str
    aim: _AimDocument


def write_brief(folder: Path, brief: Brief, aim: dict[str, Any]) -> None:
    """Fixes a brief and what it aims at; the same one is read ever after."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PROMPT, brief.prompt)
    document = brief._asdict() | {"aim": aim}
    del document["prompt"]
    write_json(folder / INPUTS, document)


def read_brief(folder: Path) -> tuple[Brief, dict[str, Any]] | None:
    """Returns the brief of a folder and what it aims at, or None if it has none yet.

    Raises:
      CodegenError: if it is damaged.
    """
    path = folder / INPUTS
    if not path.exists():
        return None
    try:
        document = read_json(path, _BriefDocument)
        prompt = read_plain(folder / PROMPT).decode()
    except (OSError, ValueError) as error:
        raise CodegenError(f"{path} is damaged: {error}") from None
    own = {name: document.pop(name) for name in ("slot", "source", "provider")}
    return Brief(**own, prompt=prompt), document["aim"]
