"""Validates one source for a slot, in a jail, and says whether it may be called.

  python -m nanoevolve_jax.codegen.validate gate mine.py --config=configs/screen.py
  python -m nanoevolve_jax.codegen.validate direction mine.py --out=runs/mine/code

A slot is direction, gate, actuate or features. The source is validated for the matrices of the
config's model and of a confirmation's wider one, and for its `codegen.max_cost`. Exit code 0:
certified; 1: refused, with the reason; 2: nothing was validated.
"""

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.codegen.sandbox.matrices import matrices
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.evidence.transfer import wider
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.policy.certified import Certified
from nanoevolve_jax.policy.slots import SLOTS
from nanoevolve_jax.terminal import streams

REFUSED = 1


def read_source(path: Path) -> str:
    """The text of a source file.

    Raises:
      ConfigError: if it is no plain file of at most `language.MAX_SOURCE_BYTES` in UTF-8.
    """
    allowed = f"a file of at most {language.MAX_SOURCE_BYTES} bytes of UTF-8"

    def mistake(what: str) -> ConfigError:
        return ConfigError(f"FILE is {str(path)!r}, {what}; allowed: {allowed}")

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        link = os.path.islink(path)
        raise mistake("a link" if link else getattr(error, "strerror", "no path")) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise mistake("no plain file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(language.MAX_SOURCE_BYTES + 1)
    if len(content) > language.MAX_SOURCE_BYTES:
        raise mistake("larger than that")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise mistake("not UTF-8") from None


def describe(function: Certified) -> str:
    """A certificate in one line."""
    programs = function.certificate["programs"]
    costs = [facts["flops"] / max(1.0, facts["baseline_flops"]) for facts in programs.values()]
    same = function.computation == function.certificate["seed_computation"]
    return (
        f"certified {function.id}: {function.slot} for {', '.join(programs)}; "
        f"{min(costs):.3g} to {max(costs):.3g} times the FLOPs of the built-in function"
        f"{', whose computation it is' if same else ''}"
    )


def validate(config: ConfigDict, arguments: Sequence[str]) -> int:
    """The command; gives the exit code."""
    if len(arguments) != 2:
        raise ConfigError(f"{len(arguments)} arguments; allowed: SLOT and FILE")
    slot, file = arguments
    if slot not in SLOTS:
        raise ConfigError(f"SLOT is {slot!r}; allowed: {', '.join(SLOTS)}")
    source = read_source(Path(file))
    given = flags.FLAGS
    if given.out is not None and Path(given.out).exists() and not Path(given.out).is_dir():
        raise ConfigError(f"--out is {given.out!r}; allowed: a folder, new or not")
    walls = runner.isolation(given.isolation)
    streams.print_line(f"isolation: {walls.in_words()}")
    verdict = certify.validate(
        slot,
        source,
        matrices(config),
        config.model.dtype,
        runner.Limits(seconds=given.seconds, cpu_seconds=math.ceil(2 * given.seconds)),
        walls,
        config.codegen.max_cost,
        also=matrices(wider(config)),
    )
    if verdict.certified is None:
        streams.print_line(f"refused: {verdict.refusal.reason}: {verdict.refusal.message}")
        return REFUSED
    streams.print_line(f"{describe(verdict.certified)}; {verdict.seconds:.1f} s")
    if given.out is not None:
        streams.print_line(Library(Path(given.out)).put(verdict.certified))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "folder to put certified code into, such as runs/mine/code")
    flags.DEFINE_string(
        "isolation", runner.REQUIRED, "required: all walls; available: those that are there"
    )
    flags.DEFINE_float("seconds", 300.0, "wall clock that validation may take", lower_bound=1.0)
    command.run(validate, arguments=True, often=("model.n_embd", "model.n_layer", "model.dtype"))
