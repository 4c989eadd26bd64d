"""Pages of text for a terminal of 80 columns, from what `overview` and `candidate` found."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import ConsoleRenderable, Group
from rich.table import Table

from nanoevolve_jax.reporting import rewritten
from nanoevolve_jax.reporting.proposals import in_words
from nanoevolve_jax.terminal.console import Console, joined, plain

WIDTH = 80
FEW = 8  # rows of a front that a page shows
_SPECS_A_TABLE = 7  # as columns
Page = list[ConsoleRenderable]
_STYLES = {"added": "green", "removed": "red", "place": "cyan", "same": ""}  # of a diff

_GAIN = (
    "val bpb: of the screening run; gain: bpb below the baseline's, a mean over the seeds that "
    "both have"
)


def render(page: Page, console: Console) -> str:
    """The text of a page, at most 80 columns wide, in the colours of the console."""
    with console.capture() as capture:
        console.page(*page, most=WIDTH)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def show(page: Page, console: Console) -> None:
    """Prints a page."""
    console.show(render(page, console))


def overview_page(found: Mapping[str, Any]) -> Page:
    """A search on a page."""
    under_way = "" if found["finished"] else ", not finished"
    counts = ", ".join(f"{count} {name}" for name, count in found["by_status"].items())
    page: Page = [plain(found["verdict"], style="bold")]
    if found["not_higher_because"]:
        page.append(plain(f"Not higher because {found['not_higher_because']}."))
    page += [
        plain(),
        plain(
            f"{found['candidates']} candidates in {found['generations'] + 1} generations"
            f"{under_way}: {counts}."
        ),
    ]
    chosen = [f"{name}: {', '.join(ids)}" for name, ids in found["chosen"].items() if ids]
    page += [plain(f"{'; '.join(chosen)}.".capitalize())] if chosen else []
    page += [
        _candidates(found["best"], f"Best by score, against {found['compared_with']}"),
        plain(_GAIN),
        plain(),
        _front(found["front"][:FEW], len(found["front"])),
        _spent(found["spent"]),
        *([plain(" ".join(in_words(found["code"]))), plain()] if found["code"] else []),
        plain(f"One candidate: python -m nanoevolve_jax.show {found['folder']} ID"),
    ]
    return page


def front_page(found: Mapping[str, Any]) -> Page:
    """The whole front."""
    return [_front(found["front"], len(found["front"]))]


def candidate_page(found: Mapping[str, Any], *, whole_spec: bool) -> Page:
    """A candidate on a page; its whole spec, or what differs from NanoChat's."""
    page: Page = [
        plain(
            f"{found['id']}: {found['status']}, generation {found['generation']}, score "
            f"{found['score']:+.4f}, cost {found['cost_over_baseline']:.3f}x",
            style="bold",
        )
    ]
    if found["evidence"]:
        level = found["level"]
        missing = f"; not higher because {level['missing']}" if level["missing"] else ""
        page += [plain(), plain(found["evidence"]), plain(f"Win level {level['level']}{missing}.")]
    page += [plain(), plain("What it does", style="bold")]
    page += [_grid([("-", said) for said in found["explanation"]])]
    page += _code(found["code"])
    page += [plain(), plain("Where it comes from", style="bold")]
    page += [_grid([(one["id"], one["origin"]) for one in found["lineage"]]), plain()]
    page += [_runs(found["runs"]), _fields(found["fields"], whole_spec)]
    return page


def comparison_page(found: Mapping[str, Any]) -> Page:
    """Given specs side by side, each with its gain over the first."""
    specs, seeds = found["specs"], found["seeds"]
    page: Page = [_tests(specs)]
    page += [
        plain(f"{same['id']} is not listed: it is the same policy as {same['same_as']}.")
        for same in found["same"]
    ]
    for start in range(0, len(specs), _SPECS_A_TABLE):
        shown = range(start, min(start + _SPECS_A_TABLE, len(specs)))
        table = _table("seed", *(f"#{i + 1}" for i in shown))
        for k, seed in enumerate(seeds):
            table.add_row(str(seed), *(_bpb(found["bpb"][i][k]) for i in shown))
        page.append(_titled("Bits per byte by seed", table))
    several = len(specs) - 1
    uncorrected = f" {several} comparisons were made, and no p is corrected for that."
    page.append(
        plain(
            f"gain: bpb below that of {specs[0]['id']} on the same seeds, after {found['steps']} "
            f"steps. This is exploration: {len(seeds)} seeds of its own, the validation text that "
            "searches screen on, one learning rate for all. It can say what is worth a search or a "
            f"confirmation; it confirms nothing.{uncorrected * (several > 1)}"
        )
    )
    return page


def difference_page(found: Mapping[str, Any]) -> Page:
    """Two specs, where they differ."""
    code = [x for one in found["code"] for x in (plain(), *_source_difference(one))]
    if not found["fields"]:
        equal = f"{found['before']} and {found['after']} are equal in every field."
        return [plain(equal), *code]
    table = _table("field", found["before"], found["after"], "")
    for one in found["fields"]:
        table.add_row(one["field"], _word(one["before"]), _word(one["after"]), _unread(one))
    same = "They are the same policy: nothing reads what differs."
    return [table, *([plain(same)] if found["same_policy"] else []), *code]


def _code(functions: Sequence[Mapping[str, Any]]) -> Page:
    """Rewritten functions: by whom, what vouches for them, and how they differ."""
    page: Page = [plain(), plain("What is rewritten in it", style="bold")] if functions else []
    for one in functions:
        page += [plain(rewritten.in_words(one)), plain(rewritten.checked_in_words(one))]
        page += [_diff(one["diff"])] if one["diff"] else []
    return page


def _source_difference(one: Mapping[str, Any]) -> Page:
    ends = [one[side] or "built in" for side in ("before", "after")]
    same = " They compute the same." if one["same_computation"] else ""
    title = f"{one['slot']}: {ends[0]} -> {ends[1]}.{same}"
    return [plain(title, style="bold"), _diff(one["diff"])]


def _diff(diff: str) -> ConsoleRenderable:
    """A unified diff in colours, where there are any."""
    lines = [plain(line, style=_STYLES[kind]) for kind, line in rewritten.diff_lines(diff)]
    return joined(lines)


def _grid(rows: Sequence[tuple[str, str]]) -> Table:
    """A word and a sentence a row, sentences below one another."""
    grid = Table.grid(padding=(0, 1))
    for row in rows:
        grid.add_row(*map(plain, row))
    return grid


def _tests(specs: Sequence[Mapping[str, Any]]) -> Table:
    """Mean bpb of every spec and its paired gain over the first."""
    columns = ("#", "spec", "mean bpb", "gain", "95 % interval", "p, one-sided", "n")
    first, *others = specs
    table = _table(*columns, left=("spec",))
    table.add_row("1", plain(first["id"]), _bpb(first["mean_bpb"]))
    for number, one in enumerate(others, start=2):
        test = one["gain"]
        gain, interval = "a run failed", ""
        if math.isfinite(test["mean"]):
            gain, interval = _gain(test["mean"]), f"{_gain(test['low'])} to {_gain(test['high'])}"
        cells = (_bpb(one["mean_bpb"]), gain, interval, f"{test['p']:.3g}", str(test["n"]))
        table.add_row(str(number), plain(one["id"]), *cells)
    return table


def _table(*columns: str, left: Sequence[str] = ()) -> Table:
    """A table whose first column and those named in `left` are words."""
    table = Table(box=box.SIMPLE, padding=0)
    for i, column in enumerate(columns):
        words = i == 0 or column in left
        table.add_column(plain(column), justify="left" if words else "right", overflow="fold")
    return table


def _titled(title: str, table: Table) -> Group:
    """A table under a title that may be wider than it is."""
    return Group(plain(title, style="bold"), table)


def _candidates(rows: Sequence[Mapping[str, Any]], title: str) -> Group:
    columns = ("id", "val bpb", "gain", "seeds", "cost", "score", "status", "last change")
    table = _table(*columns, left=("status", "last change"))
    for one in rows:
        table.add_row(
            one["id"],
            _bpb(one["val_bpb"]),
            _gain(one["gain"]),
            str(one["seeds"]),
            f"{one['cost_over_baseline']:.3f}x",
            _gain(one["score"]),
            one["status"],
            plain(one["change"] or ""),
        )
    return _titled(title, table)


def _front(rows: Sequence[Mapping[str, Any]], total: int) -> Group:
    shown = "" if total == len(rows) else f", {len(rows)} of {total} (--front: all)"
    title = f"Pareto front of bpb, cost and instability{shown}"
    table = _table("id", "val bpb", "cost", "instability", "status", left=("status",))
    for one in rows:
        table.add_row(
            one["id"],
            _bpb(one["val_bpb"]),
            f"{one['cost_over_baseline']:.3f}x",
            f"{one['instability']:.4f}",
            one["status"],
        )
    return _titled(title, table)


def _spent(stages: Mapping[str, Mapping[str, int]]) -> Group:
    table = _table("stage", "runs", "failed", "tokens")
    for stage, one in stages.items():
        table.add_row(stage, str(one["runs"]), str(one["failed"]), f"{one['tokens']:,}")
    return _titled("Compute spent", table)


def _runs(runs: Sequence[Mapping[str, Any]]) -> Group:
    table = _table("stage", "seed", "baseline bpb", "its bpb", "gain")
    for one in runs:
        table.add_row(
            one["stage"],
            str(one["seed"]),
            _bpb(one["baseline_bpb"], "not run"),
            _bpb(one["bpb"]),
            _gain(one["gain"]),
        )
    return _titled("Its runs", table)


def _fields(fields: Sequence[Mapping[str, Any]], whole: bool) -> Group:
    title = "Its spec" if whole else "What differs from NanoChat in its spec (--spec: all of it)"
    table = _table("field", "NanoChat", "here", "")
    for one in fields:
        if whole or one["here"] != one["nanochat"]:
            table.add_row(one["field"], _word(one["nanochat"]), _word(one["here"]), _unread(one))
    return _titled(title, table)


def _unread(one: Mapping[str, Any]) -> str:
    return "" if one["read"] else "not read"


def _word(value: Any) -> str:
    return "as before" if value is None else str(value)


def _bpb(value: float, missing: str = "failed") -> str:
    return f"{value:.4f}" if math.isfinite(value) else missing


def _gain(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "-"
