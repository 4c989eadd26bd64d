"""Makes one proposal with one provider, and prints its diff and its cost.

  python -m nanoevolve_jax.codegen.propose direction --provider=ollama --out=runs/try
  python -m nanoevolve_jax.codegen.propose gate mine.py --provider=openai --dry_run

FILE holds the source to start from; by default the built-in function's. The new source is checked
by its text alone and not run: `validate` does the rest. The same command again finds its answer in
the folder and does not ask twice. Exit code 1: no usable source came of it.
"""

import difflib
import functools
import math
from pathlib import Path

from absl import flags
from rich.syntax import Syntax

from nanoevolve_jax import command
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import budget, prompts, providers
from nanoevolve_jax.codegen.mutators.ask import ask
from nanoevolve_jax.codegen.mutators.credentials import forbid_core_dumps
from nanoevolve_jax.codegen.mutators.tries import SOURCE, Proposal, propose
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
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
_NUMBER = flags.DEFINE_integer("number", 0, "of the proposal, in the folder", 0, 10**6)
_SCOPE = flags.DEFINE_string("scope", "", "what the change is about; default: the slot's first")
_MAX_DOLLARS = flags.DEFINE_float("max_dollars", 1.0, "a call that might cost more is not made", 0)
_MAX_TOKENS = flags.DEFINE_float("max_tokens", math.inf, "likewise, of the whole folder", 0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the prompt, and ask nobody")


def starting_source(slot: str, file: str | None) -> str:
    """The normalised source of a file, by default of the built-in function of a slot.

    Raises:
      CodegenError: if it cannot be read or is outside the language.
    """
    if not file:
        return built_in_source(slot)
    path = Path(file)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CodegenError(
            f"FILE is {str(path)!r}; allowed: a source of {slot} ({error})"
        ) from None
    try:
        language.check(source, slot)
    except Refused as refused:
        raise CodegenError(
            f"FILE is {str(path)!r}; allowed: a source of {slot} ({refused})"
        ) from None
    return language.normalised(source)


def scope_of(slot: str, asked: str) -> str:
    """The scope of a proposal.

    Raises:
      CodegenError: if there is no such slot, or the scope does not contain it.
    """
    if slot not in SLOTS:
        raise CodegenError(f"SLOT is {slot!r}; allowed: {', '.join(SLOTS)}")
    allowed = [scope for scope, slots in SCOPES.items() if slot in slots]
    if asked and asked not in allowed:
        raise CodegenError(f"--scope is {asked!r}; allowed for {slot}: {', '.join(allowed)}")
    return asked or allowed[0]


def judged(slot: str, source: str, folder: Path) -> str | None:
    """What is wrong with a source, as far as its text says."""
    del folder
    try:
        language.check(source, slot)
    except Refused as refused:
        return f"{refused.refusal.reason}: {refused}"
    return None


def difference(before: str, after: str) -> str:
    """A unified diff of two sources, comments aside."""
    lines = (language.normalised(source).splitlines(keepends=True) for source in (before, after))
    return "".join(difflib.unified_diff(*lines, "before", "after"))


def main(arguments: list[str]) -> int:
    """The command."""
    forbid_core_dumps()
    if len(arguments) not in (1, 2):
        command.fail(f"arguments are {' '.join(arguments)!r}; allowed: SLOT, or SLOT FILE")
    slot, file, *_ = [*arguments, None]
    scope = scope_of(slot, _SCOPE.value)
    source = starting_source(slot, file)
    rules = prompts.language_rules()
    parent = prompts.Parent("built-in" if file is None else Path(file).stem, source)
    prompt = prompts.prompt(_NUMBER.value, slot, scope, parent, rules)
    if _DRY_RUN.value:
        streams.write(prompt)
        return 0
    provider = providers.chosen(providers.load(_PROVIDERS.value), _PROVIDER.value, "--provider")
    directory = Path(_OUT.value)
    limits = budget.Limits(dollars=_MAX_DOLLARS.value, tokens=_MAX_TOKENS.value)
    permit = functools.partial(budget.permitted, limits, directory)
    folder = folder_of(directory, _NUMBER.value)
    proposal = propose(
        lambda asked, place: ask(provider, asked, place, permit),
        prompt,
        source,
        slot,
        folder,
        functools.partial(judged, slot),
    )
    _print(proposal, source, folder)
    return 0 if proposal.source else 1


def _print(proposal: Proposal, before: str, folder: Path) -> None:
    console = Console()
    for count, one in enumerate(proposal.tries, 1):
        if one.wrong:
            console.print_line(f"try {count}: {one.wrong}")
    if proposal.stopped:
        console.print_line(f"not asked: {proposal.stopped}")
    if proposal.source:
        text = difference(before, proposal.source)
        look = {"theme": "ansi_dark", "background_color": "default"}
        console.print(Syntax(visible_lines(text), "diff", **look), soft_wrap=True)
        console.print_line(
            f"{folder / f'try-{len(proposal.tries)}' / SOURCE}: the new source, to be validated"
        )
    spent = budget.spent_by(one.answer for one in proposal.tries)
    estimated = sum(one.answer.estimated for one in proposal.tries)
    note = f" (requests whose tokens are estimated: {estimated})" if estimated else ""
    console.print_line(budget.in_words(spent) + note)


if __name__ == "__main__":
    command.run_on_arguments(main)
