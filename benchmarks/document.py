"""Fills the tables of docs/BENCHMARKS.md from what the benchmarks wrote.

  python -m benchmarks.document

A table stands between `<!-- NAME -->` and `<!-- end -->`, and comes from `results/NAME.json`. Where
that file does not exist the cells stay empty.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app

DOCUMENT, RESULTS = Path("docs/BENCHMARKS.md"), Path("results")
_NO_GPU, _NOT_YET = "not measured: no GPU was at hand", "not measured yet"
_PLACE = re.compile(r"(<!-- (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Rows = list[list[str]]


def markdown(header: Sequence[str], rows: Rows) -> str:
    """A table whose first column is words and whose others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def population(results: dict[str, Any]) -> Rows:
    """A row a cell, and one for virtual devices."""
    rows = []
    for variant, found in results.items():
        rows += [
            [
                f"`:{variant}`, {cell['lanes']} lane{'s' * (cell['lanes'] > 1)}",
                f"{cell['tokens_per_second']:,.0f}",
                f"{cell['times_one_lane']:.2f}",
                f"{cell['utilisation']:.0%}",
                f"{cell['peak_bytes'] / 1e6:,.0f} ({cell['peak_bytes_by']})",
                f"{cell['compile_seconds']:.1f}",
            ]
            for cell in found["cells"]
        ]
        if devices := found["virtual_devices"]:
            label = f"`:{variant}`, {devices['devices']} virtual devices"
            rate = f"{devices['tokens_per_second']:,.0f}"
            rows.append([label, rate, f"{devices['times_in_turn']:.2f}", "", "", ""])
        rows.append([f"`:{variant}`, {found['ended']}", "", "", "", "", ""])
    return rows


def optimizer(results: dict[str, Any]) -> Rows:
    """A row a subject."""
    return [
        [
            f"`:{variant}`, {name}",
            f"{row['alone_ms']:.2f}",
            f"{row['alone_to_baseline']:.3f}",
            f"{row['training_ms']:.2f}",
            f"{row['training_to_baseline']:.3f}",
            f"{row['state_bytes'] / 1e6:.2f}",
            f"{row['update_flops'] / 1e6:.1f}",
        ]
        for variant, found in results.items()
        for name, row in found["subjects"].items()
    ]


def code(results: dict[str, Any]) -> Rows:
    """A row a spec."""
    return [
        [
            f"`:{variant}`, {name}",
            f"{row['training_times']:.3f}",
            " to ".join(f"{x:.3f}" for x in row["quartiles"]),
            f"{row['alone_times']:.3f}",
            f"{row['difference']:.1e}",
        ]
        for variant, found in results.items()
        for name, row in found["specs"].items()
    ]


def goals(results: dict[str, Any]) -> Rows:
    """A row a goal of the optimizer."""
    return [
        [
            f"`:{variant}`, {goal['goal']}",
            f"{goal['most']:.3f}",
            f"{goal['found']:.3f}",
            " to ".join(f"{x:.3f}" for x in goal.get("quartiles", [])),
            f"{goal['alone']:.3f}" if "alone" in goal else "",
        ]
        for variant, found in results.items()
        for goal in found["goals"]
    ]


def search(results: dict[str, Any]) -> Rows:
    """A row a part of both runs, the largest first, then the sums."""
    rows = []
    for variant, runs in results.items():
        first, second = runs["first run"], runs["second run"]

        def row(name, of, runs=(first, second), variant=variant):
            cells = [(of(run), of(run) / run["wall_seconds"]) for run in runs]
            return [f"`:{variant}`, {name}", *(f"{s:.1f} ({share:.1%})" for s, share in cells)]

        rows += [row(name, lambda run, n=name: run["parts"].get(n, 0.0)) for name in first["parts"]]
        outside = row(
            "outside the compiled programs", lambda run: run["outside_share"] * run["wall_seconds"]
        )
        rows += [outside, row("wall time", lambda run: run["wall_seconds"])]
        rates = [f"{run['candidates_an_hour']:,.0f}" for run in (first, second)]
        rows.append([f"`:{variant}`, candidates an hour", *rates])
    return rows


def repeat(results: dict[str, Any]) -> Rows:
    """A row a set of flags."""
    return [
        [
            f"`:{variant}`, {name}",
            "same" if row["same_in_one_process"] else "differs",
            "same" if row["same_in_two_processes"] else "differs",
            f"{row['step_ms']:.2f}",
            f"{row['to_default']:.2f}",
        ]
        for variant, found in results.items()
        for name, row in found.items()
    ]


def scaling(results: dict[str, Any]) -> Rows:
    """A row a number of workers."""
    return [
        [
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['candidates_per_hour']:,.0f}",
            f"{row['speed_over_one_worker']:.2f}",
        ]
        for name, row in results.items()
    ]


_POPULATION = ("", "tokens/s", "to one lane", "of matmul peak", "memory, MB", "compile, s")
_OPTIMIZER = ("", "alone, ms", "ratio", "training, ms", "ratio", "state, MB", "MFLOP an update")
_GOALS = ("", "goal, at most", "found", "quartiles", "alone")
_CODE = ("", "training step, times", "quartiles", "optimizer alone, times", "difference")
_SEARCH = ("", "first run, s", "second run, s")
_SCALING = ("", "tokens/s", "candidates an hour", "to one worker")
_REPEAT = ("", "one process", "two processes", "ms a step", "to default")
# By the start of a result's name; `.goals` is a second table of the same file.
TABLES: dict[str, tuple[Sequence[str], Callable[[dict[str, Any]], Rows]]] = {
    "population": (_POPULATION, population),
    "optimizer": (_OPTIMIZER, optimizer),
    "goals": (_GOALS, goals),
    "code": (_CODE, code),
    "search": (_SEARCH, search),
    "scaling": (_SCALING, scaling),
    "repeat": (_REPEAT, repeat),
}


def table(name: str, results: Path) -> str:
    """The table of one place, followed by what made it.

    Args:
      name: `gpu/population_d4` for a table of `results/gpu/population_d4.json`;
        `optimizer_cpu.goals` for the goals in `results/optimizer_cpu.json`.
      results: the folder.
    """
    file, _, part = name.partition(".")
    header, rows = TABLES[part or file.rpartition("/")[2].partition("_")[0]]
    path = results / f"{file}.json"
    if not path.exists():
        reason = _NO_GPU if file.startswith("gpu/") else _NOT_YET
        return markdown(header, [[reason, *[""] * (len(header) - 1)]])
    document = json.loads(path.read_text(encoding="utf-8"))
    device, versions = document["device"], document["versions"]
    made = f"`{document['command']}`; {device['count']} x {device['kind']}, {device['cores']} cores"
    return f"{markdown(header, rows(document['results']))}\n{made}, JAX {versions['jax']}.\n"


def filled(text: str, results: Path) -> str:
    """The document with every table as the results have it."""
    return _PLACE.sub(lambda place: place[1] + table(place[2], results) + place[3], text)


def main(argv: Sequence[str]) -> None:
    del argv
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(filled(text, RESULTS), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
