"""The help of a command: its docstring, its flags and the fields of its config."""

import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from absl import flags

from nanoevolve_jax.configs.base import Setting

SHORT = ("--help", "-help", "-h", "-?", "--helpshort")
FULL = ("--helpfull", "-helpfull")
CONFIG = "configuration file, or FILE:VARIANT"
_WIDTH = 80  # columns
_FIELDS = "fields, set as --config.FIELD=VALUE"


def own_flags() -> list[flags.Flag]:
    """Returns the flags that the command's module defines."""
    return flags.FLAGS.get_key_flags_for_module(sys.argv[0])


def help_text(
    docstring: str,
    config_file: str,
    settings: Mapping[str, Setting],
    often: Sequence[str],
    *,
    full: bool,
) -> str:
    """Returns the help of a command.

    Args:
      docstring: Docstring of its module. Indented paragraphs are shown as they are.
      config_file: Default of `--config`; empty if the command has no config.
      settings: Fields of its config.
      often: Fields that the short help shows.
      full: Whether all fields are shown, with what they may hold.
    """
    if not sys.argv[0].endswith(".py"):  # started as `nanoevolve COMMAND`
        docstring = docstring.replace("python -m nanoevolve_jax.", f"{sys.argv[0].split()[0]} ")
    parts = [
        part.rstrip() if part.startswith(" ") else textwrap.fill(" ".join(part.split()), _WIDTH)
        for part in docstring.strip().split("\n\n")
    ]
    own = [("--config", config_file, CONFIG)] if config_file else []
    own += [(f"--{flag.name}", _default(flag), flag.help or "") for flag in own_flags()]
    if own:
        parts.append("\n".join(["flags", *_table(own)]))
    if full and settings:
        rows = [f"  {path}  {s.default}\n{_indented(s)}" for path, s in settings.items()]
        parts.append("\n".join([_FIELDS, *rows]))
    elif often:
        chosen = [(path, str(settings[path].default), settings[path].meaning) for path in often]
        title = f"{_FIELDS} (--helpfull shows all {len(settings)})"
        parts.append("\n".join([title, *_table(chosen)]))
    return "\n\n".join(parts)


def _indented(setting: Setting) -> str:
    indent = " " * 6
    text = f"{setting.meaning}; {setting.limits}"
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _default(flag: flags.Flag) -> str:
    return "" if flag.default in (None, False) else flag.default_as_str.strip("'")


def _table(rows: Sequence[tuple[str, str, str]]) -> Iterable[str]:
    """Yields rows of (name, default, meaning) in columns."""
    name, default = (max(len(row[i]) for row in rows) for i in (0, 1))
    for row in rows:
        start = f"  {row[0]:{name}}  {row[1]:{default}}  "
        meaning = " ".join(row[2].split())
        yield textwrap.fill(
            meaning, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start)
        ).rstrip()
