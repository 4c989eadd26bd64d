"""The providers of an ensemble on a page: what they lack, did, cost and gained."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from nanoevolve_jax.codegen.mutators.answers import answers_of
from nanoevolve_jax.codegen.mutators.bandit import chances, cost, history_of, set_aside
from nanoevolve_jax.codegen.mutators.budget import Spent, books, in_words, spent_by
from nanoevolve_jax.codegen.mutators.providers import Provider, missing
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.terminal import pages
from nanoevolve_jax.terminal.console import plain


class Row(NamedTuple):
    """One provider."""

    name: str
    model: str
    lack: str | None  # None: it can be asked
    answers: int
    failures: int
    spent: Spent
    gain_per_dollar: float | None  # None: nothing has ended yet
    chance: float  # of being chosen next
    aside: bool


def rows(
    providers: Mapping[str, Provider],
    directory: Path | None,
    asked: Collection[str] | None = None,
) -> list[Row]:
    """What is known of each provider, in the order of their file.

    Args:
      providers: the profiles.
      directory: a run folder, if any.
      asked: names of those that can be chosen; None: of all.

    Raises:
      CodegenError, ArchiveError: if one of its files is damaged.
    """
    answers = answers_of(directory) if directory else []
    entries = proposals.read(directory / proposals.FILE) if directory else []
    history = history_of(entries)
    lacks = {name: missing(provider) for name, provider in providers.items()}
    able = [n for n, lack in lacks.items() if lack is None and (asked is None or n in asked)]
    chance = chances(able, history) if able else {}
    aside = set_aside(history)
    found = []
    for name, provider in providers.items():
        own = [answer for answer in answers if answer.provider == name]
        ended = [outcome for outcome in history if outcome.provider == name]
        gain = sum(max(outcome.gain, 0.0) for outcome in ended)
        found.append(
            Row(
                name=name,
                model=provider.model,
                lack=lacks[name],
                answers=len(own),
                failures=sum(answer.failure is not None for answer in own),
                spent=spent_by(own),
                gain_per_dollar=gain / sum(map(cost, ended)) if ended else None,
                chance=chance.get(name, 0.0),
                aside=name in aside,
            )
        )
    return found


def page(
    providers: Mapping[str, Provider],
    directory: Path | None,
    asked: Collection[str] | None = None,
) -> pages.Page:
    """The page; arguments as those of `rows`."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading in ("provider", "state"):
        table.add_column(heading)
    for heading in ("answers", "failed", "tokens", "dollars", "gain/$", "chance"):
        table.add_column(heading, justify="right")
    found = rows(providers, directory, asked)
    for row in found:
        rate = "" if row.gain_per_dollar is None else f"{row.gain_per_dollar:.4f}"
        table.add_row(
            plain(row.name),
            plain("set aside" if row.aside else "missing" if row.lack else "ready"),
            *(f"{n:,}" for n in (row.answers, row.failures, row.spent.tokens)),
            f"{row.spent.dollars:.4f}",
            rate,
            f"{row.chance:.0%}",
        )
    notes = [f"{row.name}: {row.lack}" for row in found if row.lack]
    if directory:
        spent, reserved = books(directory)
        notes.append(f"Spent: {in_words(spent)}")
        if reserved.calls:
            notes.append(f"Under way, at worst: {in_words(reserved)}")
    return [table, *([plain()] if notes else []), *map(plain, notes)]
