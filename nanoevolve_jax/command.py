"""Shared code of all commands: `--config`, `--help` and one-line error messages."""

import errno
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from nanoevolve_jax.configs.base import OFTEN, SETTINGS, Setting
from nanoevolve_jax.configs.lookup import locate
from nanoevolve_jax.errors import UserError, must
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.execution.settings import get_setting, unknown_field, validate
from nanoevolve_jax.stopping import INTERRUPTED, interrupt_on_signals
from nanoevolve_jax.terminal import streams, usage

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLACE_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
BAD_INPUT = 2
NO_READER = 141
_LONGEST = 2000  # largest number of characters in an error message
_ILLEGAL = re.compile(r"flag --(\S+?)=(.*?): ", re.DOTALL)  # start of absl's error about a value


def fail(message: object) -> None:
    """Prints an error message and exits with code 2.

    Args:
      message: Message, which is shortened if it is very long.
    """
    text = str(message).strip() or "unknown error"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    streams.print_error(f"error: {text}")
    hosts.leave(BAD_INPUT)


def run(
    command: Callable[..., int | None],
    *,
    config_file: str = "configs/screen.py",
    settings: Mapping[str, Setting] = SETTINGS,
    validate: Callable[[ConfigDict], None] = validate,
    arguments: bool = False,
    often: Sequence[str] = OFTEN,
) -> None:
    """Parses flags, validates the config, calls the command with it and exits.

    Args:
      command: Function that returns the exit code, or None for 0. The docstring of its module is
        the help text.
      config_file: Default value of `--config`.
      settings: Setting of each config field by dotted path.
      validate: Function that raises ConfigError if the config is invalid.
      arguments: Whether the command also takes a list of positional arguments.
      often: Dotted paths of the config fields that `--help` shows.
    """
    config: Any = None

    def define(argv: list[str]) -> None:
        nonlocal config
        path = locate(config_file)
        config = config_flags.DEFINE_config_file("config", path, usage.CONFIG, sys_argv=argv)

    def main(words: list[str]) -> int | None:
        if words and not arguments:
            fail(f"argument {words[0]!r} is not a flag; the command takes only flags")
        validate(config.value)
        return command(config.value, words) if arguments else command(config.value)

    def places() -> dict[str, Any]:
        texts = [path for path, setting in settings.items() if isinstance(setting.default, str)]
        return {f"config.{path}": get_setting(config.value, path) for path in texts}

    def help_text(full: bool) -> str:
        return usage.help_text(_docstring(command), config_file, settings, often, full=full)

    _run(main, define, settings, help_text, places, only_prints=False)


def run_on_arguments(
    command: Callable[[list[str]], int | None], *, only_prints: bool = False
) -> None:
    """Parses flags, calls a command that does not have a config, and exits.

    Args:
      command: Function that takes the positional arguments and returns the exit code, or None for
        0. The docstring of its module is the help text.
      only_prints: Whether output is the only purpose of the command. If so, it ends when the reader
        of a pipe has closed it, and fails if the output cannot be written.
    """

    def help_text(full: bool) -> str:
        return usage.help_text(_docstring(command), "", {}, (), full=full)

    _run(command, lambda argv: None, {}, help_text, dict, only_prints=only_prints)


def _docstring(command: Callable[..., Any]) -> str:
    # `__main__` may be another script that called the module, so its docstring cannot be used.
    return command.__globals__["__doc__"] or ""


def _run(
    command: Callable[[list[str]], int | None],
    define: Callable[[list[str]], None],
    settings: Mapping[str, Setting],
    help_text: Callable[[bool], str],
    places: Callable[[], Mapping[str, Any]],
    *,
    only_prints: bool,
) -> None:
    """Parses flags, calls a command and exits.

    Args:
      command: Function that takes the positional arguments and returns the exit code.
      define: Function that takes the command line and defines the flags of the config.
      settings: Setting of each config field by dotted path.
      help_text: Function that returns the help text, in full if its argument is true.
      places: Function that returns the config values that may be paths, by field name.
      only_prints: Whether output is the only purpose of the command.
    """
    streams.guard(strict=only_prints)
    if isinstance(sys.stderr, streams.SafeStream):
        logging.get_absl_handler().python_handler.setStream(sys.stderr)

    def parse(argv: list[str]) -> list[str]:
        before_dashes = argv[1 : argv.index("--") if "--" in argv else None]
        if any(word in usage.SHORT + usage.FULL for word in before_dashes):
            streams.write(f"{help_text(any(word in usage.FULL for word in before_dashes))}\n")
            sys.exit(0)
        try:
            checked = [argv[0], *_checked(argv[1:], settings)]
            define(checked)
            rest = flags.FLAGS(checked)
        except Exception as error:  # a configuration file may raise any exception
            return fail(_explain(error, settings))
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING  # absl's default is INFO
        return rest

    def main(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # hides the progress messages of libraries
        interrupt_on_signals()
        try:
            code = command(argv[1:])
            sys.stdout.flush()
            lost = getattr(sys.stdout, "error", None)
            if lost and only_prints:
                fail(f"the standard output cannot be written ({lost.strerror})")
            sys.exit(code)
        except UserError as error:
            fail(error)
        except Interrupted:
            streams.print_error("stopped and saved; the same command resumes")
            sys.exit(INTERRUPTED)
        except KeyboardInterrupt:
            streams.print_error("interrupted; the same command resumes from what is saved")
            sys.exit(INTERRUPTED)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                where = f"{error.filename or 'the disk'}: {error.strerror}"
                fail(f"{where}; what was written is kept, and the same command resumes")
            if error.errno not in PLACE_ERRORS or error.filename is None:
                raise
            own = {f"--{flag.name}": flag.value for flag in usage.own_flags()}
            fail(_explain_place(error, {**places(), **own}))

    try:
        app.run(main, flags_parser=parse)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        sys.stdout.relax()
        sys.exit(NO_READER)
    except SystemExit as end:
        hosts.leave_if_handlers_hang(end.code)
        raise


def _checked(arguments: Sequence[str], settings: Mapping[str, Setting]) -> list[str]:
    """Returns the arguments with the value of `--config` replaced by the path of a file.

    Args:
      arguments: Arguments of the command line, without the program.
      settings: Setting of each config field by dotted path.

    Raises:
      UserError: If a field does not exist, or the file is missing.
    """
    checked: list[str] = []
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if argument == "--":
            return [*checked, *arguments[i:]]
        path = name.lstrip("-").removeprefix("config.")
        if settings and name.startswith(("--config.", "-config.")) and path not in settings:
            raise UserError(unknown_field(path, settings))
        if settings and name in ("--config", "-config") and equals:
            argument = f"{name}={_config_file(value)}"
        elif settings and checked and checked[-1] in ("--config", "-config"):
            argument = _config_file(argument)
        checked.append(argument)
    return checked


def _config_file(name: str) -> str:
    try:
        return locate(name)
    except FileNotFoundError:
        raise UserError(must("--config", "be a file, such as configs/screen.py", name)) from None


def _explain(error: BaseException, settings: Mapping[str, Setting]) -> str:
    """Returns a one-line message about an error that was raised while flags were parsed."""
    origin = error
    while cause := origin.__cause__ or (
        None if origin.__suppress_context__ else origin.__context__
    ):
        origin = cause
    if isinstance(origin, UserError):
        return str(origin)
    if not isinstance(error, flags.Error):
        return f"--config: {origin}"
    illegal = _ILLEGAL.match(str(error))
    if illegal is None or illegal[1] == "config":
        return f"{error}; see --help"
    name, value = illegal.groups()
    if setting := settings.get(name.removeprefix("config.")):
        return must(name, f"be {setting.limits}", value)
    parser = flags.FLAGS[name].parser
    words = " or ".join(getattr(parser, "enum_values", ())) or parser.syntactic_help
    return must(f"--{name}", f"be {words or 'true or false'}", value)


def _explain_place(error: OSError, places: Mapping[str, Any]) -> str:
    """Returns a one-line message about a path that cannot be used.

    The message names the config field or flag that contains the path, if there is one.

    Args:
      error: Error with a file name.
      places: Values of config fields and flags by name.
    """
    path = Path(os.fsdecode(error.filename)).absolute()
    for name, value in places.items():
        if isinstance(value, str) and value and path.is_relative_to(Path(value).absolute()):
            message = must(name, "be a place that can be read and written", value)
            return f"{message} ({error.strerror}: {str(error.filename)!r})"
    return f"{error.filename}: {error.strerror}"
