"""What every command shares: the `--config` flag, and mistakes that end in one line."""

import sys
from collections.abc import Callable

from absl import app, flags
from data.corpus import CorpusError
from ml_collections import ConfigDict, config_flags

from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.settings import ConfigError, validate
from nanoevolve_jax.policy.spec_json import SpecError

USER_ERRORS = (ConfigError, SpecError, CorpusError, ArchiveError)
BAD_INPUT = 2
INTERRUPTED = 130


def fail(message: object) -> None:
    """Prints one line and exits with code 2."""
    first_line = (str(message).splitlines() or ["unknown error"])[0]
    print(f"error: {first_line}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def run(command: Callable[[ConfigDict], None]) -> None:
    """Parses flags, validates `--config` and calls the command with it."""
    config = config_flags.DEFINE_config_file(
        "config", "configs/screen.py", "configuration file, with :variant if it has any"
    )

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        # What a mistyped file, variant, field or value raises inside ml_collections.
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            return fail(f"--config: {error}")

    def main(argv):
        if len(argv) > 1:
            fail(f"argument {argv[1]!r} is unknown; allowed: flags, such as --config.seed=1")
        try:
            validate(config.value)
            command(config.value)
        except USER_ERRORS as error:
            fail(error)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(INTERRUPTED)

    app.run(main, flags_parser=parse)
