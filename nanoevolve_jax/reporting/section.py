"""What a report is made of: sentences, figures and tables."""

from collections.abc import Sequence
from typing import NamedTuple

from nanoevolve_jax.evidence.statistics import Interval
from nanoevolve_jax.reporting.chart import Chart


class Table(NamedTuple):
    """Rows of text; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False  # opened by whoever wants the numbers of a figure
    summary: str = "Numbers"  # what a folded one is called


class Group(NamedTuple):
    """Figures that stand together."""

    title: str | None
    charts: Sequence[Chart]
    small: bool = False  # many small ones beside each other


class Diff(NamedTuple):
    """How a source differs from the one before it."""

    title: str
    sentences: Sequence[str]
    lines: Sequence[tuple[str, str]]  # kind and text, see `rewritten.diff_lines`


class Section(NamedTuple):
    """One section of the page."""

    name: str  # of its element
    title: str
    sentences: Sequence[str]
    groups: Sequence[Group] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()  # below figures and tables
    diffs: Sequence[Diff] = ()


class Fact(NamedTuple):
    """One of the few figures at the top."""

    name: str
    value: str
    note: str


def with_interval(found: Interval, form: str, several: bool) -> str:
    """A mean, with its interval where several values gave it."""
    if not several:
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"
