"""Fills the generated tables of the docs.

  python -m benchmarks.document

A generated part lies between `<!-- NAME -->` and `<!-- end -->`. The names `settings`, `sensors`
and `actuators` stand for tables made from the code, and `plan` for the output of a planned
campaign. Every other name refers to a file `results/NAME.json` that a benchmark has written. If
that file is missing, the table has empty cells.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app

from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.policy import spec

DOCS, RESULTS = Path("docs"), Path("results")
PAGES = ("BENCHMARKS.md", "CONFIGURATION.md", "EVALUATION.md", "POLICY.md")
PLAN = "nanoevolve search --config.plan=true --config.step_seconds=0.04 --config.devices=2"
_NO_GPU, _NOT_YET = "not measured: no GPU was at hand", "not measured yet"
_PLACE = re.compile(r"(<!-- (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TITLES = {
    "": "The run",
    "track": "Trackers",
    "ray": "Ray cluster",
    "data": "Text",
    "model": "Model",
    "train": "Training run",
    "recipe": "Recipe",
    "search": "Search",
    "promote": "Promotion",
    "confirm": "Confirmation",
    "attribute": "Attribution",
    "transfer": "Transfer",
    "compare": "Comparison of given specs",
    "calibrate": "Calibration",
    "codegen": "Code mutation",
}

Rows = list[list[str]]


def markdown(header: Sequence[str], rows: Rows) -> str:
    """Returns a Markdown table with words in the first column and numbers in the others.

    Args:
      header: Titles of the columns.
      rows: Cells of each row.
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def population(results: dict[str, Any]) -> Rows:
    """Returns one row per number of lanes and one row for virtual devices."""
    rows = []
    for variant, result in results.items():
        rows += [
            [
                f"`:{variant}`, {cell['lanes']} lane{'s' * (cell['lanes'] > 1)}",
                f"{cell['tokens_per_second']:,.0f}",
                f"{cell['times_one_lane']:.2f}",
                f"{cell['utilisation']:.0%}",
                f"{cell['peak_bytes'] / 1e6:,.0f} ({cell['peak_bytes_by']})",
                f"{cell['compile_seconds']:.1f}",
            ]
            for cell in result["cells"]
        ]
        if devices := result["virtual_devices"]:
            label = f"`:{variant}`, {devices['devices']} virtual devices"
            rate = f"{devices['tokens_per_second']:,.0f}"
            rows.append([label, rate, f"{devices['times_in_turn']:.2f}", "", "", ""])
    return rows


def optimizer(results: dict[str, Any]) -> Rows:
    """Returns one row per optimizer."""
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
        for variant, result in results.items()
        for name, row in result["subjects"].items()
    ]


def code(results: dict[str, Any]) -> Rows:
    """Returns one row per spec."""
    return [
        [
            f"`:{variant}`, {name}",
            f"{row['training_times']:.3f}",
            " to ".join(f"{x:.3f}" for x in row["quartiles"]),
            f"{row['alone_times']:.3f}",
            f"{row['difference']:.1e}",
        ]
        for variant, result in results.items()
        for name, row in result["specs"].items()
    ]


def goals(results: dict[str, Any]) -> Rows:
    """Returns one row per goal of the optimizer."""
    return [
        [
            f"`:{variant}`, {goal['goal']}",
            f"{goal['most']:.3f}",
            f"{goal['found']:.3f}",
            " to ".join(f"{x:.3f}" for x in goal.get("quartiles", [])),
            f"{goal['alone']:.3f}" if "alone" in goal else "",
        ]
        for variant, result in results.items()
        for goal in result["goals"]
    ]


def search(results: dict[str, Any]) -> Rows:
    """Returns one row per part of both runs, the longest part first, followed by the totals."""
    rows = []
    for variant, runs in results.items():
        first, second = runs["first run"], runs["second run"]

        def row(name, value, runs=(first, second), variant=variant):
            cells = [(value(run), value(run) / run["wall_seconds"]) for run in runs]
            return [f"`:{variant}`, {name}", *(f"{s:.1f} ({share:.1%})" for s, share in cells)]

        rows += [row(name, lambda run, n=name: run["parts"].get(n, 0.0)) for name in first["parts"]]
        outside = row(
            "outside the compiled programs", lambda run: run["outside_share"] * run["wall_seconds"]
        )
        rows += [outside, row("wall time", lambda run: run["wall_seconds"])]
        rates = [f"{run['candidates_an_hour']:,.0f}" for run in (first, second)]
        rows.append([f"`:{variant}`, candidates per hour", *rates])
    return rows


def repeat(results: dict[str, Any]) -> Rows:
    """Returns one row per set of flags."""
    return [
        [
            f"`:{variant}`, {name}",
            "same" if row["same_in_one_process"] else "differs",
            "same" if row["same_in_two_processes"] else "differs",
            f"{row['step_ms']:.2f}",
            f"{row['to_default']:.2f}",
        ]
        for variant, result in results.items()
        for name, row in result.items()
    ]


def scaling(results: dict[str, Any]) -> Rows:
    """Returns one row per engine."""
    return [
        [
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['candidates_per_hour']:,.0f}",
            f"{row['speed_over_one_worker']:.2f}",
        ]
        for name, row in results.items()
    ]


def step(results: dict[str, Any]) -> Rows:
    """Returns one row per program."""
    columns = ("ratio_to_numpy", "ratio_to_specialised_baseline")
    return [
        [name, f"{row['median_ms']:.0f}", *(f"{row[column]:.2f}" for column in columns)]
        for name, row in results.items()
    ]


# Header and function for the rows by the start of a result's name. The suffix `.goals` selects a
# second table of the same file.
TABLES: dict[str, tuple[Sequence[str], Callable[[dict[str, Any]], Rows]]] = {
    "population": (
        ("", "tokens/s", "relative to one lane", "of matmul peak", "memory, MB", "compile, s"),
        population,
    ),
    "optimizer": (
        ("", "alone, ms", "ratio", "training, ms", "ratio", "state, MB", "MFLOP per update"),
        optimizer,
    ),
    "goals": (("", "goal, at most", "measured", "quartiles", "alone"), goals),
    "code": (("", "training step", "quartiles", "optimizer alone", "difference"), code),
    "search": (("", "first run, s", "second run, s"), search),
    "scaling": (("", "tokens/s", "candidates per hour", "relative to one worker"), scaling),
    "step": (("", "ms per step", "relative to NumPy", "relative to the baseline"), step),
    "repeat": (
        ("", "one process", "two processes", "ms per step", "relative to default"),
        repeat,
    ),
}


def table(name: str, results: Path) -> str:
    """Returns the table of a result, followed by the command and the device.

    Args:
      name: Name of the result, such as `gpu/population_d4` for `results/gpu/population_d4.json` or
        `optimizer_cpu.goals` for the goals in `results/optimizer_cpu.json`.
      results: Folder that holds the results.
    """
    file, _, part = name.partition(".")
    header, rows = TABLES[part or file.rpartition("/")[2].partition("_")[0]]
    path = results / f"{file}.json"
    if not path.exists():
        reason = _NO_GPU if file.startswith("gpu/") else _NOT_YET
        return markdown(header, [[reason, *[""] * (len(header) - 1)]])
    document = json.loads(path.read_text(encoding="utf-8"))
    machine = document.get("machine")  # field of older results, which do not have `device`
    if device := document.get("device"):
        machine = f"{device['count']} x {device['kind']}, {device['cores']} cores"
    origin = f"`{document['command']}`; {machine}, JAX {document['versions']['jax']}."
    return f"{markdown(header, rows(document['results']))}\n{origin}\n"


def plan() -> str:
    """Returns a command that plans a campaign of the default search, followed by its output."""
    planned = subprocess.run(
        [sys.executable, "-m", "nanoevolve_jax", *PLAN.split()[1:]],
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    return f"```\n{PLAN}\n```\n\n```\n{planned.stdout}```\n"


def settings() -> str:
    """Returns a table of config fields for each group, under the title of the group."""
    groups: dict[str, str] = dict.fromkeys(_TITLES, "")
    for path, setting in SETTINGS.items():
        limits = setting.limits.removeprefix("an integer from ").removeprefix("a number from ")
        row = f"| `{path}` | {setting.default} | {limits} | {setting.meaning} |\n"
        groups[path.rpartition(".")[0]] += row
    columns = "| field | default | values | meaning |\n| --- | --- | --- | --- |\n"
    return "\n".join(f"## {_TITLES[name]}\n\n{columns}{rows}" for name, rows in groups.items())


def sensors() -> str:
    """Returns the table of sensors."""
    rows = "".join(
        f"| `{name}` | {row.meaning} | {'' if row.normaliser is None else row.normaliser} |\n"
        for name, row in spec.SENSORS._asdict().items()
    )
    return f"| sensor | raw value | normaliser |\n| --- | --- | ---: |\n{rows}"


def actuators() -> str:
    """Returns the table of actuators."""
    rows = "".join(
        f"| `{name}` | {row.meaning} | {row.aggressive} | {row.conservative} "
        f"| {row.low} to {row.high} |\n"
        for name, row in spec.ACTUATORS._asdict().items()
    )
    columns = "| actuator | meaning | aggressive pole | conservative pole | bounds |\n"
    return f"{columns}| --- | --- | ---: | ---: | --- |\n{rows}"


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings,
    "sensors": sensors,
    "actuators": actuators,
    "plan": plan,
}


def filled(text: str, results: Path) -> str:
    """Returns the text of a page with all generated parts updated.

    Args:
      text: Text of the page.
      results: Folder that holds the results.
    """

    def part(place: re.Match) -> str:
        generate = GENERATED.get(place[2])
        return place[1] + (generate() if generate else table(place[2], results)) + place[3]

    return _PLACE.sub(part, text)


def main(argv: Sequence[str]) -> None:
    """Fills all pages."""
    del argv
    for name in PAGES:
        page = DOCS / name
        page.write_text(filled(page.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
