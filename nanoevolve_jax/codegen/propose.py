"""Makes one proposal with one provider and prints its diff and cost.

  python -m nanoevolve_jax.codegen.propose direction --provider=ollama --out=runs/try
  python -m nanoevolve_jax.codegen.propose gate mine.py --provider=openai --dry_run

FILE contains the source to edit; the default is the source of the built-in function. Only the text
of the new source is checked. Use `validate` to run it in the sandbox. Repeating the command reuses
the answer that is stored in the folder. The exit code is 1 if there is no usable source.
"""

import asyncio
import difflib
import functools
import math
from pathlib import Path

from absl import flags
from rich.syntax import Syntax

from nanoevolve_jax import command
from nanoevolve_jax.codegen.campaign.proposal import SOURCE, Rounds, ask_twice
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import budget, calls, prompts, providers
from nanoevolve_jax.codegen.mutators.credentials import forbid_core_dumps
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.errors import must
from nanoevolve_jax.escaping import visible_lines
from nanoevolve_jax.evolution.proposals import folder_of
from nanoevolve_jax.policy.slots import SCOPES, SLOTS, built_in_source
from nanoevolve_jax.terminal import streams
from nanoevolve_jax.terminal.console import Console

_PROVIDER = flags.DEFINE_string("provider", "", "name of a profile")
_PROVIDERS = flags.DEFINE_string("providers", providers.FILE, "TOML file of profiles")
_OUT = flags.DEFINE_string(
    "out", "runs/propose", "folder for prompt, answer and source", allow_override=True
)
_NUMBER = flags.DEFINE_integer("number", 0, "number of the proposal in the folder", 0, 10**6)
_SCOPE = flags.DEFINE_string("scope", "", "scope of the change; by default the slot's first one")
_MAX_DOLLARS = flags.DEFINE_float("max_dollars", 1.0, "dollars that the folder may cost", 0)
_MAX_TOKENS = flags.DEFINE_float("max_tokens", math.inf, "tokens that the folder may cost", 0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the prompt and ask no provider")


def starting_source(slot: str, file: str | None) -> str:
    """Returns the normalised source of a file, or the source of a slot's built-in function.

    Args:
      slot: Name of the slot, one of `SLOTS`.
      file: Path of the source file, or None for the built-in function.

    Raises:
      CodegenError: If the file cannot be read or its source is not in the language.
    """
    if file is None:
        return built_in_source(slot)
    try:
        source = Path(file).read_text(encoding="utf-8")
        language.check(source, slot)
    except (OSError, UnicodeDecodeError, Refused) as error:
        raise CodegenError(f"{must('FILE', f'be a source of {slot}', file)}: {error}") from None
    return language.normalised(source)


def scope_of(slot: str, scope: str) -> str:
    """Returns the scope of a proposal.

    Args:
      slot: Name of the slot.
      scope: Name of a scope that contains the slot, or "" for the first such scope.

    Raises:
      CodegenError: If the slot does not exist or the scope does not contain it.
    """
    if slot not in SLOTS:
        raise CodegenError(must("SLOT", f"be one of {', '.join(SLOTS)}", slot))
    scopes = [name for name, slots in SCOPES.items() if slot in slots]
    if scope and scope not in scopes:
        raise CodegenError(must("--scope", f"be one of {', '.join(scopes)} for {slot}", scope))
    return scope or scopes[0]


async def check_text(slot: str, source: str, folder: Path) -> str | None:
    """Returns the reason why the text of a source is refused, or None if it is accepted.

    Args:
      slot: Name of the slot, one of `SLOTS`.
      source: Python text of the source.
      folder: Not used; part of the interface of `ask_twice`.
    """
    del folder
    try:
        language.check(source, slot)
    except Refused as refused:
        return f"{refused.refusal.reason}: {refused}"
    return None


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code.

    Args:
      arguments: Command-line arguments: the slot, and optionally a source file.

    Returns:
      0 if there is a new source that passes the check of its text, or after a dry run; otherwise 1.

    Raises:
      CodegenError: If an argument, a profile or a stored file cannot be used.
    """
    forbid_core_dumps()
    if len(arguments) not in (1, 2):
        command.fail(must("the arguments", "be SLOT, or SLOT FILE", " ".join(arguments)))
    slot, file, *_ = [*arguments, None]
    scope, source = scope_of(slot, _SCOPE.value), starting_source(slot, file)
    parent = prompts.Parent("built-in" if file is None else Path(file).stem, source)
    prompt = prompts.prompt(_NUMBER.value, slot, scope, parent)
    if _DRY_RUN.value:
        streams.write(prompt)
        return 0
    profiles = providers.load(_PROVIDERS.value)
    provider = providers.choose_profile(profiles, _PROVIDER.value, "--provider")
    limits = budget.Limits(dollars=_MAX_DOLLARS.value, tokens=_MAX_TOKENS.value)
    permit = functools.partial(calls.permitted, limits, Path(_OUT.value))
    folder = folder_of(Path(_OUT.value), _NUMBER.value)

    async def ask(prompt: str, place: Path) -> calls.Answer:
        return await calls.ask(provider, prompt, place, permit)

    check = functools.partial(check_text, slot)
    rounds = asyncio.run(ask_twice(ask, prompt, source, slot, folder, check))
    _print(rounds, source, folder)
    return 0 if rounds.source else 1


def _print(rounds: Rounds, before: str, folder: Path) -> None:
    console = Console()
    for number, one_round in enumerate(rounds.rounds, 1):
        if one_round.wrong:
            console.print_line(f"try {number}: {one_round.wrong}")
    if rounds.stopped:
        console.print_line(f"not asked: {rounds.stopped}")
    if rounds.source:
        lines = (language.normalised(x).splitlines(keepends=True) for x in (before, rounds.source))
        text = visible_lines("".join(difflib.unified_diff(*lines, "before", "after")))
        look = {"theme": "ansi_dark", "background_color": "default"}
        console.print(Syntax(text, "diff", **look), soft_wrap=True)
        place = folder / f"try-{len(rounds.rounds)}" / SOURCE
        console.print_line(f"{place}: the new source, to be validated")
    answers = [one_round.answer for one_round in rounds.rounds]
    estimated = sum(answer.estimated for answer in answers)
    note = f" (requests whose tokens are estimated: {estimated})" if estimated else ""
    console.print_line(budget.describe(calls.cost_of(answers)) + note)


if __name__ == "__main__":
    command.run_on_arguments(main)
