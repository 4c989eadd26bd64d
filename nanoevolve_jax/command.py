"""What every command shares: `--config`, `--help`, and mistakes that end in one line."""

import errno
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from nanoevolve_jax.configs.base import OFTEN, SETTINGS, Setting
from nanoevolve_jax.configs.lookup import locate
from nanoevolve_jax.errors import UserError
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.execution.settings import get_setting, validate
from nanoevolve_jax.stopping import INTERRUPTED, interrupt_on_signals
from nanoevolve_jax.terminal import streams, usage
from nanoevolve_jax.terminal.mistakes import explain, explain_place

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLACE_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
BAD_INPUT = 2
NO_READER = 141
_CONFIG = ("--config", "-config")
_LONGEST = 2000  # characters of an error


def fail(message: object) -> None:
    """Prints a message in one line and exits with code 2."""
    text = str(message).strip() or "unknown error"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    streams.print_error(f"error: {text}")
    hosts.leave(BAD_INPUT)


def run(
    command: Callable[..., None],
    *,
    config_file: str = "configs/screen.py",
    settings: Mapping[str, Setting] = SETTINGS,
    validate: Callable[[ConfigDict], None] = validate,
    arguments: bool = False,
    often: Sequence[str] = OFTEN,
) -> None:
    """Parses flags, validates `--config` and calls the command with it.

    Args:
      command: what to do; the docstring of its module is the command's help.
      config_file: the default of `--config`.
      settings: the fields of its config.
      validate: raises ConfigError for a config that cannot run.
      arguments: whether the command takes a list of arguments after the config.
      often: the fields that `--help` names.
    """
    config = None

    def define():
        nonlocal config
        config = config_flags.DEFINE_config_file(
            "config", locate(config_file), "configuration file, with :variant if it has any"
        )

    def main(given):
        if given and not arguments:
            fail(f"argument {given[0]!r} is not a flag; the command takes only --config and flags")
        validate(config.value)
        return command(config.value, given) if arguments else command(config.value)

    def places():
        texts = {path: setting.default for path, setting in settings.items()}
        return {
            f"config.{path}": get_setting(config.value, path)
            for path, default in texts.items()
            if isinstance(default, str)
        }

    _run(main, define, _Help(command, settings, often, config_file), places)


def run_on_arguments(
    command: Callable[[list[str]], int | None], *, only_prints: bool = False
) -> None:
    """Parses flags and calls a command without a config with the list of its arguments.

    Args:
      command: what to do; gives the exit code, None for 0. The docstring of its module is the
        command's help.
      only_prints: Whether output is all that the command is for, so that it ends when a pipe that
        it writes to has no reader any more, or its output cannot be written.
    """
    _run(command, lambda: None, _Help(command, {}, (), ""), dict, only_prints)


class _Help(NamedTuple):
    """What `--help` is made of."""

    command: Callable[..., Any]
    settings: Mapping[str, Setting]
    often: Sequence[str]
    config_file: str  # empty: the command has no config

    def text(self, full: bool) -> str:
        """The help; `full`: with every field."""
        own = usage.own_flags()
        if self.config_file:
            meaning = "configuration file, with :variant if it has any"
            parser, serializer = flags.ArgumentParser(), flags.ArgumentSerializer()
            own.insert(0, flags.Flag(parser, serializer, "config", self.config_file, meaning))
        return usage.help_text(
            # Not the docstring of `__main__`, which is the script that called the module.
            self.command.__globals__["__doc__"] or "",
            path=sys.argv[0],
            own=own,
            settings=self.settings,
            often=self.often,
            full=full,
        )


def _run(
    command: Callable[[list[str]], int | None],
    define: Callable[[], None],
    help: _Help,
    places: Callable[[], Mapping[str, str]],
    only_prints: bool = False,
) -> None:
    """Parses flags, calls the command with its arguments, and ends mistakes in one line.

    Args:
      command: see `run_on_arguments`.
      define: defines the flags that depend on the command.
      help: of the command.
      places: values that may be paths, by the names of their fields.
      only_prints: see `run_on_arguments`.
    """
    streams.guard(strict=only_prints)
    if isinstance(sys.stderr, streams.SafeStream):
        logging.get_absl_handler().python_handler.setStream(sys.stderr)

    def parse(argv):
        asked = argv[1 : argv.index("--") if "--" in argv else None]
        if any(argument in usage.SHORT + usage.FULL for argument in asked):
            streams.write(f"{help.text(full=any(word in usage.FULL for word in asked))}\n")
            sys.exit(0)
        try:
            define()
            rest = flags.FLAGS(_located(argv) if help.settings else argv)
        # A mistyped flag, variant, field or value, and whatever a configuration file raises.
        except Exception as error:
            return fail(explain(argv[1:], error, help.settings))
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING  # absl's own default here is INFO
        return rest

    def main(argv):
        logging.set_verbosity(logging.WARNING)  # or every library reports what it does
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
            streams.print_error("stopped and saved; the same command goes on from here")
            sys.exit(INTERRUPTED)
        except KeyboardInterrupt:
            streams.print_error("interrupted; the same command goes on from what is saved")
            sys.exit(INTERRUPTED)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                where = f"{error.filename or 'the disk'}: {error.strerror}"
                fail(f"{where}; what was written is kept, the same command goes on")
            if error.errno not in PLACE_ERRORS or error.filename is None:
                raise
            own = {f"flag --{flag.name}": flag.value for flag in usage.own_flags()}
            fail(explain_place(error, {**places(), **own}))

    try:
        app.run(main, flags_parser=parse)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout.relax()
        sys.exit(NO_READER)
    except SystemExit as end:
        hosts.leave_if_handlers_hang(end.code)
        raise


def _located(arguments: Sequence[str]) -> list[str]:
    """A command line whose `--config` is the path of a file, wherever that lies."""
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=")
        if name in _CONFIG and equals:
            argument = f"{name}={locate(value)}"
        elif before in _CONFIG:
            argument = locate(argument)
        found.append(argument)
    return found
