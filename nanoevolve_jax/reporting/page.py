"""The report of a run folder: one HTML file that needs nothing but itself."""

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nanoevolve_jax.escaping import visible, visible_lines
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.plain_files import write_whole
from nanoevolve_jax.reporting import training, words
from nanoevolve_jax.reporting.candidates import candidates
from nanoevolve_jax.reporting.history import History, read_history
from nanoevolve_jax.reporting.sections import facts, sections

FILE = "report.html"
_TEMPLATE = "report.html.jinja"


def render(history: History) -> str:
    """The page; the same text for the same folder."""
    made = sections(history)
    shown = [
        chart for section in made.values() for group in section.groups for chart in group.charts
    ]
    data = {
        "charts": {chart.name: {"data": chart.data, "layout": chart.layout} for chart in shown},
        "candidates": candidates(history),
        "chosen": training.subject(history).id,
    }
    data = _visible(data)
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            name=history.folder.name,
            verdict=words.verdict(history),
            facts=facts(history),
            sections=made,
            data=data,
            css=_asset("report.css"),
            script=_asset("report.js"),
            plotly=Markup(get_plotlyjs()),
        )
    )


def _visible(value: Any) -> Any:
    """Returns a document in whose strings every character can be seen; our own markup stays."""
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
    """Everything is escaped and can be seen; a name that the template does not get is a mistake."""
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
    """Reads a run folder and writes its report whole or not at all; returns where.

    Args:
      folder: of a search, finished or under way.
      out: the file; by default `report.html` in the folder.

    Raises:
      ArchiveError: if the folder holds no search, or the file cannot be written.
      EvidenceError: if what stands in the folder was changed.
    """
    text = render(read_history(folder, "--workdir"))
    path = out or folder / FILE
    try:
        write_whole(path, text)
    except OSError as error:
        raise ArchiveError(
            f"--out is {str(path)!r}; allowed: a file that can be written ({error.strerror})"
        ) from None
    return path


def write_at_end(folder: Path, log: Callable[[str], Any]) -> Path | None:
    """Writes the report of what has just ended; returns where, or says in one line why it cannot.

    What has ended is on disk, and a report is only a view of it: nothing that is wrong with the
    view, an unforeseen mistake included, may turn a finished run into a failed one.
    """
    try:
        return write_report(folder)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        log(
            f"{folder / FILE} was not written ({type(error).__name__}: {reason}); everything else "
            f"was, and `python -m nanoevolve_jax.report --workdir={folder}` tries again"
        )
        return None
