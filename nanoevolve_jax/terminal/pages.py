"""Pages of tables and paragraphs for a terminal of 80 columns, from the data of `reporting`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import ConsoleRenderable, Group
from rich.table import Table

from nanoevolve_jax.reporting.candidates import candidate_details
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.policies import difference, named_arm
from nanoevolve_jax.reporting.rewritten_code import (
    author_sentence,
    certificate_sentence,
    diff_lines,
    proposal_sentences,
)
from nanoevolve_jax.reporting.summary import overview
from nanoevolve_jax.terminal.console import Console, joined, plain

WIDTH = 80
_FRONT_ROWS = 8  # rows of the front in the overview
_SPECS_PER_TABLE = 7
Page = list[ConsoleRenderable]
# What `show` displays: its arguments in words, and how many there may be.
VIEWS = {
    "diff": ("DIR --diff and two of: an id, a preset, a JSON file, DIR:ID", (3,)),
    "front": ("DIR --front", (1,)),
    "spec": ("DIR ID --spec", (2,)),
    "": ("DIR, or DIR ID", (1, 2)),
}
_BEST = 5  # candidates of the overview
_STYLES = {
    "added": "green",
    "removed": "red",
    "place": "cyan",
    "same": "",
}  # styles of lines of a diff


def render(page: Page, console: Console) -> str:
    """Returns the text of a page, at most 80 columns wide, in the colours of the console."""
    with console.capture() as capture:
        console.page(*page, most=WIDTH)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def show(page: Page, console: Console) -> None:
    """Prints a page."""
    console.show(render(page, console))


def view(arguments: Sequence[str], kind: str) -> tuple[dict[str, Any], Page]:
    """Returns what `show` displays, as data and as a page.

    Args:
      arguments: Run folder, and the further arguments of the command.
      kind: Key of VIEWS.
    """
    history = read_history(Path(arguments[0]), "DIR")
    if kind == "diff":
        arms = (named_arm(name, history.baseline.spec, history) for name in arguments[1:])
        data = difference(*arms)
        return data, difference_page(data)
    if len(arguments) > 1:
        data = candidate_details(history, history.record(arguments[1]))
        return data, candidate_page(data, full_spec=kind == "spec")
    data = overview(history, _BEST)
    if kind == "front":
        return {"front": data["front"]}, front_page(data)
    return data, overview_page(data)


def overview_page(search: Mapping[str, Any]) -> Page:
    """Returns the page of a search."""
    in_progress = "" if search["finished"] else ", not finished"
    counts = ", ".join(f"{count} {name}" for name, count in search["by_status"].items())
    page: Page = [plain(search["verdict"], style="bold")]
    if search["not_higher_because"]:
        page.append(plain(f"The next level is not reached because {search['not_higher_because']}."))
    page += [
        plain(),
        plain(
            f"{search['candidates']} candidates in {search['generations'] + 1} generations"
            f"{in_progress}: {counts}."
        ),
    ]
    chosen = [f"{name}: {', '.join(ids)}" for name, ids in search["chosen"].items() if ids]
    page += [plain(f"{'; '.join(chosen)}.".capitalize())] if chosen else []
    page += [
        _candidates(search["best"], f"Best by score, against {search['compared_with']}"),
        plain("gain: mean loss of the baseline minus that of the candidate on shared seeds"),
        plain(),
        _front(search["front"][:_FRONT_ROWS], len(search["front"])),
        _spent(search["spent"]),
    ]
    if search["code"]:
        page += [plain(" ".join(proposal_sentences(search["code"]))), plain()]
    command = f"python -m nanoevolve_jax.show {search['folder']} ID"
    return [*page, plain(f"To see one candidate: {command}")]


def front_page(search: Mapping[str, Any]) -> Page:
    """Returns the page of the full Pareto front."""
    return [_front(search["front"], len(search["front"]))]


def candidate_page(candidate: Mapping[str, Any], *, full_spec: bool) -> Page:
    """Returns the page of a candidate, with its full spec or only what differs from NanoChat's."""
    page: Page = [
        plain(
            f"{candidate['id']}: {candidate['status']}, generation {candidate['generation']}, "
            f"score {candidate['score']:+.4f}, cost {candidate['cost_over_baseline']:.3f}x",
            style="bold",
        )
    ]
    if candidate["evidence"]:
        level = candidate["level"]
        missing = (
            f" The next level is not reached because {level['missing']}."
            if level["missing"]
            else ""
        )
        page += [plain(), plain(candidate["evidence"])]
        page += [plain(f"Win level {level['level']}.{missing}")]
    page += [plain(), plain("What it does", style="bold")]
    page += [_grid([("-", sentence) for sentence in candidate["explanation"]])]
    if candidate["code"]:
        page += [plain(), plain("Rewritten functions", style="bold")]
    for function in candidate["code"]:
        page += [plain(author_sentence(function)), plain(certificate_sentence(function))]
        page += [_diff(function["diff"])] if function["diff"] else []
    page += [plain(), plain("Lineage", style="bold")]
    page += [_grid([(step["id"], step["origin"]) for step in candidate["lineage"]]), plain()]
    return page + [_runs(candidate["runs"]), _fields(candidate["fields"], full_spec)]


def comparison_page(comparison: Mapping[str, Any]) -> Page:
    """Returns the page of a comparison: each spec with its gain over the first."""
    specs, seeds = comparison["specs"], comparison["seeds"]
    page: Page = [_tests(specs)]
    page += [
        plain(f"{same['id']} is left out because it is the same policy as {same['same_as']}.")
        for same in comparison["same"]
    ]
    for start in range(0, len(specs), _SPECS_PER_TABLE):
        shown = range(start, min(start + _SPECS_PER_TABLE, len(specs)))
        table = _table("seed", *(f"#{i + 1}" for i in shown))
        for k, seed in enumerate(seeds):
            table.add_row(str(seed), *(_bpb(comparison["bpb"][i][k]) for i in shown))
        page.append(_titled("Bits per byte by seed", table))
    tests = len(specs) - 1
    uncorrected = f" The p-values are not corrected for the {tests} comparisons."
    page.append(
        plain(
            f"gain: mean loss of {specs[0]['id']} minus that of the spec on the same seeds, in "
            f"bpb, after {comparison['steps']} steps. A comparison is exploratory: it uses "
            f"{len(seeds)} seeds of its own, the validation text of screening, and one learning "
            "rate for all specs. It can suggest a search or a confirmation, but it confirms "
            f"nothing.{uncorrected * (tests > 1)}"
        )
    )
    return page


def difference_page(changes: Mapping[str, Any]) -> Page:
    """Returns the page of two specs with the fields in which they differ."""
    before, after = changes["before"], changes["after"]
    code: Page = [
        part for change in changes["code"] for part in (plain(), *_source_difference(change))
    ]
    if not changes["fields"]:
        return [plain(f"{before} and {after} are equal in every field."), *code]
    table = _table("field", before, after, "")
    for field in changes["fields"]:
        values = (_value(field["before"]), _value(field["after"]))
        table.add_row(field["field"], *values, _unread(field))
    same = "They are the same policy, because the fields that differ have no effect."
    return [table, *([plain(same)] if changes["same_policy"] else []), *code]


def _source_difference(change: Mapping[str, Any]) -> Page:
    before, after = (change[side] or "built-in" for side in ("before", "after"))
    same = " Both compute the same." if change["same_computation"] else ""
    title = plain(f"{change['slot']}: {before} -> {after}.{same}", style="bold")
    return [title, _diff(change["diff"])]


def _diff(diff: str) -> ConsoleRenderable:
    return joined([plain(line, style=_STYLES[kind]) for kind, line in diff_lines(diff)])


def _grid(rows: Sequence[tuple[str, str]]) -> Table:
    """Returns rows of a word and a sentence, with the sentences aligned."""
    grid = Table.grid(padding=(0, 1))
    for row in rows:
        grid.add_row(*map(plain, row))
    return grid


def _tests(specs: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the mean loss of each spec and its paired gain over the first."""
    columns = ("#", "spec", "mean bpb", "gain", "95 % interval", "p, one-sided", "n")
    first, *others = specs
    table = _table(*columns, left=("spec",))
    table.add_row("1", plain(first["id"]), _bpb(first["mean_bpb"]))
    for number, spec in enumerate(others, start=2):
        test = spec["gain"]
        gain, interval = "a run failed", ""
        if math.isfinite(test["mean"]):
            gain, interval = _gain(test["mean"]), f"{_gain(test['low'])} to {_gain(test['high'])}"
        cells = (_bpb(spec["mean_bpb"]), gain, interval, f"{test['p']:.3g}", str(test["n"]))
        table.add_row(str(number), plain(spec["id"]), *cells)
    return table


def _table(*columns: str, left: Sequence[str] = ()) -> Table:
    """Returns a table that aligns its first column, and those in `left`, to the left."""
    table = Table(box=box.SIMPLE, padding=0)
    for i, column in enumerate(columns):
        text = i == 0 or column in left
        table.add_column(plain(column), justify="left" if text else "right", overflow="fold")
    return table


def _titled(title: str, table: Table) -> Group:
    """Returns a table below a title that may be wider than the table."""
    return Group(plain(title, style="bold"), table)


def _candidates(rows: Sequence[Mapping[str, Any]], title: str) -> Group:
    columns = ("id", "val bpb", "gain", "seeds", "cost", "score", "status", "last change")
    table = _table(*columns, left=("status", "last change"))
    for row in rows:
        table.add_row(
            row["id"],
            _bpb(row["val_bpb"]),
            _gain(row["gain"]),
            str(row["seeds"]),
            f"{row['cost_over_baseline']:.3f}x",
            _gain(row["score"]),
            row["status"],
            plain(row["change"] or ""),
        )
    return _titled(title, table)


def _front(rows: Sequence[Mapping[str, Any]], total: int) -> Group:
    shown = "" if total == len(rows) else f", {len(rows)} of {total} (all with --front)"
    table = _table("id", "val bpb", "cost", "instability", "status", left=("status",))
    for row in rows:
        table.add_row(
            row["id"],
            _bpb(row["val_bpb"]),
            f"{row['cost_over_baseline']:.3f}x",
            f"{row['instability']:.4f}",
            row["status"],
        )
    return _titled(f"Pareto front of bpb, cost and instability{shown}", table)


def _spent(stages: Mapping[str, Mapping[str, int]]) -> Group:
    table = _table("stage", "runs", "failed", "tokens")
    for stage, spent in stages.items():
        table.add_row(stage, str(spent["runs"]), str(spent["failed"]), f"{spent['tokens']:,}")
    return _titled("Compute spent", table)


def _runs(runs: Sequence[Mapping[str, Any]]) -> Group:
    table = _table("stage", "seed", "baseline bpb", "candidate bpb", "gain")
    for run in runs:
        baseline = _bpb(run["baseline_bpb"], "not run")
        table.add_row(
            run["stage"], str(run["seed"]), baseline, _bpb(run["bpb"]), _gain(run["gain"])
        )
    return _titled("Runs", table)


def _fields(fields: Sequence[Mapping[str, Any]], full: bool) -> Group:
    title = "Spec" if full else "Differences of its spec from NanoChat (full spec with --spec)"
    table = _table("field", "NanoChat", "candidate", "")
    for field in fields:
        if full or field["here"] != field["nanochat"]:
            values = (_value(field["nanochat"]), _value(field["here"]))
            table.add_row(field["field"], *values, _unread(field))
    return _titled(title, table)


def _unread(field: Mapping[str, Any]) -> str:
    return "" if field["read"] else "no effect"


def _value(value: Any) -> str:
    return "unchanged" if value is None else str(value)


def _bpb(value: float, missing: str = "failed") -> str:
    return f"{value:.4f}" if math.isfinite(value) else missing


def _gain(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "-"
