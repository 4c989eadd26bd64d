"""What is wrong with a command line, or with a place that it names, in words."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from nanoevolve_jax.configs.base import SETTINGS, Setting
from nanoevolve_jax.configs.lookup import locate
from nanoevolve_jax.errors import must
from nanoevolve_jax.execution.settings import unknown_field
from nanoevolve_jax.terminal.usage import own_flags


def explain(
    arguments: Sequence[str],
    error: BaseException,
    settings: Mapping[str, Setting] = SETTINGS,
) -> str:
    """What is wrong with a command line.

    Args:
      arguments: of the command line, the program's name left out.
      error: what parsing them raised.
      settings: the fields of the command's config.
    """
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        name, value = name.lstrip("-"), value if equals else following
        path = name.removeprefix("config.")
        if argument == "--":
            break
        if not argument.startswith("-"):
            continue
        if not settings or path == name != "config":
            if message := _explain_flag(argument, name, value, settings):
                return message
        elif name == "config":
            try:
                locate(value)
            except FileNotFoundError:
                return must("--config", "be a file, such as configs/screen.py", value)
        elif path not in settings:
            return unknown_field(path, settings)
        elif not parses(value, settings[path]):
            return must(f"config.{path}", f"be {settings[path].limits}", value)
    return f"--config: {error}" if settings and not isinstance(error, flags.Error) else str(error)


def _explain_flag(argument: str, name: str, value: str, settings: Mapping[str, Setting]) -> str:
    """What is wrong with a flag that is no field of the config; empty if nothing is."""
    known = name if name in flags.FLAGS else name.removeprefix("no")
    if known not in flags.FLAGS:
        names = [f"--{flag.name}" for flag in own_flags()]
        names += ["--config and --config.FIELD=VALUE"] if settings else []
        return f"flag {argument!r} is unknown; the flags are {', '.join(names) or 'none'}"
    flag = flags.FLAGS[known]
    if flag.boolean and "=" not in argument:
        return ""
    try:
        flag.parser.parse(value)
    except ValueError:
        words = " or ".join(getattr(flag.parser, "enum_values", ()))
        words = words or flag.parser.syntactic_help or "true or false"
        return must(f"--{known}", f"be {words}", value)
    return ""


def parses(value: str, setting: Setting) -> bool:
    """Whether the text of a flag can be a value of the setting, its bounds left aside."""
    kind = type(setting.default)
    try:
        flags.BooleanParser().parse(value) if kind is bool else kind(value)
    except ValueError:
        return False
    return True


def explain_place(error: OSError, places: Mapping[str, Any]) -> str:
    """Which file or folder cannot be used, and which field or flag it comes from.

    Args:
      error: with a file name.
      places: values of fields and flags by name; what is no text is passed over.
    """
    path = Path(os.fsdecode(error.filename)).absolute()
    for name, value in places.items():
        if isinstance(value, str) and value and path.is_relative_to(Path(value).absolute()):
            message = must(name, "be a place that can be read and written", value)
            return f"{message} ({error.strerror}: {str(error.filename)!r})"
    return f"{error.filename}: {error.strerror}"
