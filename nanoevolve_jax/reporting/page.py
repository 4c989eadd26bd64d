"""Writes the report of a run folder: one HTML file that needs no other file and no network."""

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nanoevolve_jax.errors import must
from nanoevolve_jax.escaping import visible, visible_lines
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.plain_files import write_whole
from nanoevolve_jax.reporting import measurements, summary
from nanoevolve_jax.reporting.candidates import compact_candidates
from nanoevolve_jax.reporting.elements import COLORS, Fact, Section
from nanoevolve_jax.reporting.evidence_sections import noise_section, placebo_section
from nanoevolve_jax.reporting.history import History, read_history
from nanoevolve_jax.reporting.policy_sections import (
    behaviour_section,
    curves_section,
    drivers_section,
)
from nanoevolve_jax.reporting.search_sections import (
    code_section,
    compute_section,
    configuration_section,
    front_section,
    operators_section,
)

FILE = "report.html"
_TEMPLATE = "report.html.jinja"
_TREE_AFTER = "front"  # the family tree, which the template contains, follows this section


def report_sections(history: History) -> dict[str, Section]:
    """Returns all sections by name, in reading order; code only for a search with code mutation.

    A section without data explains why there is none.
    """
    sections = (
        curves_section(history),
        behaviour_section(history),
        drivers_section(history),
        front_section(history),
        code_section(history),
        operators_section(history),
        noise_section(history),
        placebo_section(history),
        compute_section(history),
        configuration_section(history),
    )
    return {section.name: section for section in sections if section is not None}


def facts(history: History) -> list[Fact]:
    """Returns the key figures below the verdict."""
    record, records = measurements.subject(history), history.records
    level, missing = summary.win_level(history)
    gains = measurements.stage_gains(history, record)
    failed = sum(r.failure is not None for r in records)
    stages = summary.spent(history).values()
    runs, tokens = (sum(stage[key] for stage in stages) for key in ("runs", "tokens"))
    note = f"next level not reached: {missing}" if missing else "of 5"
    facts = [Fact("Win level", "unknown" if level is None else str(level), note)]
    if gains:
        last = gains[-1]
        interval = (
            f"95 % interval {last.gain.low:+.4f} to {last.gain.high:+.4f}"
            if last.seeds > 1
            else "one seed, no interval"
        )
        note = f"{last.stage}, over {last.against}; {interval}"
        facts.append(Fact(f"Gain of {record.id}, bpb", f"{last.gain.mean:+.4f}", note))
    cost = f"{record.cost / history.baseline.cost:.3f}x"
    generations = f"{records[-1].generation} generations after the founders; {failed} failed"
    return [
        *facts,
        Fact("Cost of a step", cost, f"FLOPs of {record.id}, relative to the baseline"),
        Fact("Candidates", f"{len(records):,}", generations),
        Fact("Training runs", f"{runs:,}", f"{tokens:,} tokens, without calibration"),
    ]


def render(history: History) -> str:
    """Returns the page; the same folder always gives the same text."""
    sections = report_sections(history)
    charts = [
        chart for section in sections.values() for group in section.groups for chart in group.charts
    ]
    data = {
        "charts": {chart.name: chart.to_json() for chart in charts},
        "colors": {color: f"--{name}" for name, color in COLORS.items()},
        "candidates": compact_candidates(history),
        "chosen": measurements.subject(history).id,
    }
    names = list(sections)
    tree = names.index(_TREE_AFTER) + 1
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            name=history.folder.name,
            verdict=summary.verdict(history),
            facts=facts(history),
            before_tree=[sections[name] for name in names[:tree]],
            after_tree=[sections[name] for name in names[tree:]],
            data=_visible(data),
            css=_asset("report.css"),
            script=_asset("report.js"),
            plotly=Markup(get_plotlyjs()),
        )
    )


def _visible(value: Any) -> Any:
    """Returns a document with all invisible characters of its strings escaped, except in markup."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return visible_lines(value)
    if isinstance(value, Mapping):
        return {visible(name): _visible(inner) for name, inner in value.items()}
    return [_visible(inner) for inner in value] if isinstance(value, list | tuple) else value


def _asset(name: str) -> Markup:
    return Markup(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _environment() -> jinja2.Environment:
    """Returns an environment that escapes all values and rejects undefined names."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Reads a run folder, writes its report atomically, and returns the path of the report.

    Args:
      folder: Run folder of a search, finished or in progress.
      out: Path of the report; by default `report.html` in the folder.

    Raises:
      ArchiveError: if the folder has no search, or the file cannot be written.
      EvidenceError: if a sealed file in the folder was changed.
    """
    text = render(read_history(folder, "--workdir"))
    path = out or folder / FILE
    try:
        write_whole(path, text)
    except OSError as error:
        text = must("--out", "be a file that can be written", str(path))
        raise ArchiveError(f"{text} ({error.strerror})") from None
    return path


def write_at_end(folder: Path, log: Callable[[str], Any]) -> Path | None:
    """Writes the report of a finished run and returns its path, or logs why it cannot.

    The run is already on disk, so no error of the report, not even a bug, may make it fail.
    """
    try:
        return write_report(folder)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        log(
            f"{folder / FILE} was not written ({type(error).__name__}: {reason}). The run itself "
            f"is saved; to retry, run `python -m nanoevolve_jax.report --workdir={folder}`"
        )
        return None
