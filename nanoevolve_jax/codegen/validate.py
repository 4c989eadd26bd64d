"""Validates a source for a slot in the sandbox and prints its certificate or refusal.

  python -m nanoevolve_jax.codegen.validate gate mine.py --config=configs/screen.py
  python -m nanoevolve_jax.codegen.validate direction mine.py --out=runs/mine/code

A slot is direction, gate, actuate or features. The source is validated for the matrices of the
config's model and of the wider model used in confirmations, with the bound `codegen.max_cost`. The
exit code is 0 if the source is certified, 1 if it is refused and 2 if nothing was validated.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.transfer import wider
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.execution.plain_files import FileError, read_plain
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.policy.certified import Certified
from nanoevolve_jax.policy.slots import SLOTS
from nanoevolve_jax.terminal import streams

REFUSED = 1


def read_source(path: Path) -> str:
    """Returns the text of a source file.

    Args:
      path: Path of the file, which must not be a link.

    Raises:
      ConfigError: If the path is not a regular file, if the file is larger than
        `language.MAX_SOURCE_BYTES`, or if it is not valid UTF-8.
    """
    try:
        return read_plain(path, language.MAX_SOURCE_BYTES, follow=False).decode()
    # A ValueError means that the text is not UTF-8 or that the path contains a null byte.
    except (FileError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        rule = f"be a file of at most {language.MAX_SOURCE_BYTES} bytes of UTF-8 ({reason})"
        raise ConfigError(must("FILE", rule, str(path))) from None


def describe(function: Certified) -> str:
    """Returns a summary of a certificate as one line.

    Args:
      function: Certified function.
    """
    programs = function.certificate["programs"]
    costs = [facts["flops"] / max(1.0, facts["baseline_flops"]) for facts in programs.values()]
    same = function.computation == function.certificate["seed_computation"]
    return (
        f"certified {function.id}: {function.slot} for {', '.join(programs)}; "
        f"{min(costs):.3g} to {max(costs):.3g} times the FLOPs of the built-in function"
        f"{', whose computation it is' if same else ''}"
    )


def validate(config: ConfigDict, arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Args:
      config: Configuration whose model and `codegen.max_cost` the source is validated for.
      arguments: Slot and path of the source file.

    Raises:
      ConfigError: If an argument or a flag is invalid, or if the sandbox of this machine lacks a
        required protection.
    """
    if len(arguments) != 2:
        raise ConfigError(must("the arguments", "be SLOT and FILE", " ".join(arguments)))
    slot, file = arguments
    if slot not in SLOTS:
        raise ConfigError(must("SLOT", f"be one of {', '.join(SLOTS)}", slot))
    source = read_source(Path(file))
    given = flags.FLAGS
    if given.out is not None and Path(given.out).exists() and not Path(given.out).is_dir():
        raise ConfigError(must("--out", "be a folder, new or not", given.out))
    isolation = runner.isolation(given.isolation)
    streams.print_line(f"isolation: {isolation.in_words()}")
    verdict = certify.validate(
        slot,
        source,
        certify.matrices_of(config),
        config.model.dtype,
        runner.Limits(seconds=given.seconds, cpu_seconds=math.ceil(2 * given.seconds)),
        isolation,
        config.codegen.max_cost,
        also=certify.matrices_of(wider(config)),
    )
    if verdict.certified is None:
        streams.print_line(f"refused: {verdict.refusal.reason}: {verdict.refusal.message}")
        return REFUSED
    streams.print_line(f"{describe(verdict.certified)}; {verdict.seconds:.1f} s")
    if given.out is not None:
        streams.print_line(Library(Path(given.out)).put(verdict.certified))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "folder for certified code, such as runs/mine/code")
    flags.DEFINE_string(
        "isolation", runner.REQUIRED, "required: every wall of the sandbox; available: those here"
    )
    flags.DEFINE_float("seconds", 300.0, "wall clock that validation may take", lower_bound=1.0)
    command.run(validate, arguments=True, often=("model.n_embd", "model.n_layer", "model.dtype"))
