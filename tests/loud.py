"""A command whose libraries print text from outside and which ends in an unforeseen error."""

import logging as python_logging
import warnings

from absl import logging

from nanoevolve_jax import command

EVIL = "\x1b[2J\x9b\u202e\r"


def main(arguments: list[str]) -> None:
    """Prints the text in every way that libraries use."""
    print(f"1 {EVIL}\x1b[31mred\x1b[0m")
    logging.error("2 %s", EVIL)
    python_logging.getLogger("other").error("3 %s", EVIL)
    warnings.warn(f"4 {EVIL}", stacklevel=1)
    raise RuntimeError(f"5 {EVIL}")


if __name__ == "__main__":
    command.run_on_arguments(main)
