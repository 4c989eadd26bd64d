"""What every command shares: the `--config` flag, and mistakes that end in one line."""

import difflib
import errno
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from configs.base import SETTINGS, Setting
from data.corpus import CorpusError
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.checkpoint import CheckpointError, Interrupted
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.execution.memory import OutOfMemoryError
from nanoevolve_jax.execution.settings import ConfigError, allowed, validate
from nanoevolve_jax.policy.mutations import ExhaustedError
from nanoevolve_jax.policy.spec_json import SpecError

USER_ERRORS = (
    *(ConfigError, SpecError, CorpusError, ArchiveError, EvidenceError, ExhaustedError),
    *(CheckpointError, ClusterError, OutOfMemoryError),
)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
BAD_INPUT = 2
INTERRUPTED = 130


def fail(message: object) -> None:
    """Prints one line and exits with code 2."""
    first_line = (str(message).splitlines() or ["unknown error"])[0]
    print(f"error: {first_line}", file=sys.stderr)
    hosts.leave(BAD_INPUT)


def explain(
    arguments: Sequence[str],
    error: BaseException,
    settings: Mapping[str, Setting] = SETTINGS,
) -> str:
    """What is wrong with a command line, in words that the flag libraries do not have.

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
        if name == "config":
            file, _, variant = value.partition(":")
            if not Path(file).is_file():
                return f"--config is {value!r}; allowed: a file, such as configs/screen.py"
            if "allowed" in str(error) and variant:
                return f"--config is {value!r}: {error}"
        elif path != name and path not in settings:
            near = difflib.get_close_matches(path, settings, n=3) or settings
            return f"config.{path} is {value!r}, but no such field; allowed: {', '.join(near)}"
        elif path != name:
            if not _parses(value, settings[path]):
                return f"config.{path} is {value!r}; allowed: {allowed(settings[path])}"
        elif argument.startswith("-") and name not in flags.FLAGS:
            own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
            names = [f"--{flag.name}" for flag in own if flag.name != "config"]
            names += ["--config and --config.FIELD=VALUE"] if settings else []
            return f"flag {argument!r} is unknown; allowed: {', '.join(names) or 'none'}"
    return f"--config: {error}" if settings else str(error)


def _parses(value: str, setting: Setting) -> bool:
    kind = type(setting.default)
    try:
        flags.BooleanParser().parse(value) if kind is bool else kind(value)
    except ValueError:
        return False
    return True


def run(
    command: Callable[..., None],
    *,
    config_file: str = "configs/screen.py",
    settings: Mapping[str, Setting] = SETTINGS,
    validate: Callable[[ConfigDict], None] = validate,
    arguments: bool = False,
) -> None:
    """Parses flags, validates `--config` and calls the command with it.

    Args:
      command: what to do.
      config_file: the default of `--config`.
      settings: the fields of its config.
      validate: raises ConfigError for a config that cannot run.
      arguments: whether the command takes a list of arguments after the config.
    """
    config = None

    def define():
        nonlocal config
        config = config_flags.DEFINE_config_file(
            "config", config_file, "configuration file, with :variant if it has any"
        )

    def main(given):
        if given and not arguments:
            fail(f"argument {given[0]!r} is unknown; allowed: flags, such as --config.seed=1")
        validate(config.value)
        return command(config.value, given) if arguments else command(config.value)

    _run(main, define, settings)


def run_on_arguments(command: Callable[[list[str]], int | None]) -> None:
    """Parses flags and calls a command without a config with the list of its arguments.

    Args:
      command: what to do; gives the exit code, None for 0.
    """
    _run(command, lambda: None, {})


def _run(
    command: Callable[[list[str]], int | None],
    define: Callable[[], None],
    settings: Mapping[str, Setting],
) -> None:
    """Parses flags, calls the command with its arguments, and ends mistakes in one line."""

    def parse(argv):
        try:
            define()
            rest = flags.FLAGS(argv)
        # A mistyped flag, variant, field or value, and whatever a configuration file raises.
        except Exception as error:
            return fail(explain(argv[1:], error, settings))
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING  # absl's own default here is INFO
        return rest

    def main(argv):
        logging.set_verbosity(logging.WARNING)  # or every library reports what it does
        try:
            sys.exit(command(argv[1:]))
        except USER_ERRORS as error:
            fail(error)
        except Interrupted:
            print("stopped and saved; the same command goes on from here", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from what is saved", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            where = error.filename or "the disk"
            fail(f"{where}: {error.strerror}; what was written is kept, the same command goes on")

    app.run(main, flags_parser=parse)
