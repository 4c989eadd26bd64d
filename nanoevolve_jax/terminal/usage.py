"""What `--help` says of a command: its docstring, its flags and the fields of its config."""

import io
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags
from rich.table import Column, Table

from nanoevolve_jax.configs.base import Setting
from nanoevolve_jax.terminal.console import Console, plain

WIDTH = 80
SHORT = ("--help", "-help", "-h", "-?", "--helpshort")
FULL = ("--helpfull", "-helpfull")
_PROSE = textwrap.TextWrapper(WIDTH, break_on_hyphens=False)
_COMMAND = textwrap.TextWrapper(
    WIDTH - 2,
    initial_indent="  ",
    subsequent_indent="      ",
    break_long_words=False,
    break_on_hyphens=False,
)


def program(path: str) -> str:
    """How a command was started, from `sys.argv[0]`."""
    return f"python -m nanoevolve_jax.{Path(path).stem}" if path.endswith(".py") else path


def own_flags() -> list[flags.Flag]:
    """The flags of this command, but for `--config`."""
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    return [flag for flag in own if flag.name != "config"]


def help_text(
    docstring: str,
    *,
    path: str,
    own: Iterable[flags.Flag],
    settings: Mapping[str, Setting],
    often: Sequence[str],
    full: bool,
) -> str:
    """The help of a command, 80 columns wide.

    Args:
      docstring: of its module; paragraphs that begin with a command are command lines.
      path: `sys.argv[0]`.
      own: its flags.
      settings: the fields of its config; none without a config.
      often: the fields that a short help names.
      full: whether all fields are named, with what they may hold.
    """
    parts = [*_paragraphs(docstring, program(path))]
    flag_rows = [_flag_row(flag) for flag in own]
    if flag_rows:
        parts.append("flags\n" + _table(flag_rows))
    fields = settings if full else [path for path in often if path in settings]
    if fields:
        first = next(iter(fields))
        more = f" (--helpfull: all {len(settings)})" if len(fields) < len(settings) else ""
        heading = f"fields{more}, as in --config.{first}={settings[first].default}\n"
        parts.append(heading + _table(_field_row(path, settings[path], full) for path in fields))
    return "\n\n".join(parts)


def _paragraphs(docstring: str, name: str) -> Iterable[str]:
    """The docstring's paragraphs in 80 columns, its commands as this one was started."""
    if not name.startswith("python -m"):
        docstring = re.sub(r"python -m nanoevolve_jax\.", f"{name.split()[0]} ", docstring)
    for paragraph in docstring.strip().split("\n\n"):
        if paragraph.lstrip().startswith(("python -m ", name.split()[0])):
            lines = re.sub(r"\\\n", " ", paragraph).split("\n")
            yield "\n".join(_command_line(line.strip()) for line in lines)
        else:
            yield _PROSE.fill(" ".join(paragraph.split()))


def _command_line(line: str) -> str:
    """A command in 80 columns, and what it does, if that stands behind two spaces or more."""
    command, gap, meaning = re.fullmatch(r"(.*?)(?:( {2,})(.*))?", line).groups()
    if not meaning:
        return " \\\n".join(_COMMAND.wrap(command))
    start = f"  {command}{gap}"
    return textwrap.fill(meaning, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _flag_row(flag: flags.Flag) -> tuple[str, str, str]:
    default = flag.default_as_str.strip("'") if flag.default not in (None, False) else ""
    return f"--{flag.name}", default, " ".join(flag.help.split())


def _field_row(path: str, setting: Setting, full: bool) -> tuple[str, str, str]:
    limits = " or ".join(setting.choices)
    if setting.low is not None:
        limits = f"{setting.low:g} to {setting.high:g}"
    return path, str(setting.default), setting.meaning + (f" ({limits})" if full and limits else "")


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    name, default = Column(no_wrap=True), Column(no_wrap=True)
    table = Table.grid(Column(), name, default, Column(), padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row("", *map(plain, row))
    console = Console(width=WIDTH, file=io.StringIO())
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
