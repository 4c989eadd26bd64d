"""Code of a received run folder is validated once more before its programs run here.

A certificate has no signature: the author of a folder can put programs into it that do something
else than the source beside them. What this machine has validated is recorded in the user's own
cache, so code of one's own is not validated again.
"""

import re
from collections.abc import Iterable

from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.execution.machine import private_folder, user_cache
from nanoevolve_jax.policy.certified import CertificateError, Certified, Code
from nanoevolve_jax.policy.slots import SCALAR, shape_key
from nanoevolve_jax.policy.stablehlo import without_lines

FOLDER = "certified"  # in the user's cache: an empty file per certificate
_SHAPE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
_MOST_COST = 1000.0  # the highest limit that a campaign may set; a cost is no danger


def remember(function: Certified) -> None:
    """Records that a function was validated on this machine."""
    (private_folder(private_folder(user_cache()) / FOLDER) / function.id).touch()


def is_known(function: Certified) -> bool:
    """Whether a function was validated on this machine."""
    return (user_cache() / FOLDER / function.id).is_file()


def require_validated(codes: Iterable[Code | None], isolation: str) -> None:
    """Validates in the jail what this machine has not validated before.

    Args:
      codes: Code of policies that are to be trained; None for built-in functions.
      isolation: Walls of the jail, `required` or `available`.

    Raises:
      CertificateError: if a function is refused, or its programs are not those of its source.
      ConfigError: if there is something to validate, and this machine lacks the walls.
    """
    functions = {f.id: f for code in codes if code for f in code.functions}
    for function in functions.values():
        if not is_known(function):
            _validate(function, runner.isolation(isolation))
            remember(function)


def _validate(function: Certified, walls: runner.Isolation) -> None:
    """Validates a source, and compares what comes of it with the programs that are there."""
    programs = function.certificate["programs"]
    verdict = certify.validate(
        function.slot,
        function.source,
        [_matrix(key, function.id) for key in programs if key != shape_key(SCALAR)],
        function.certificate["dtype"],
        runner.Limits(),
        walls,
        _MOST_COST,
    )
    if verdict.refusal is not None:
        raise CertificateError(
            f"code {function.id} is refused on this machine ({verdict.refusal.reason}: "
            f"{verdict.refusal.message}); allowed: code that passes validation"
        )
    made = verdict.certified
    if made.computation != function.computation or _programs(made) != _programs(function):
        versions = function.certificate.get("versions")
        raise CertificateError(
            f"the programs of code {function.id} must be those that its source gives here with "
            f"{made.certificate['versions']}, and they are others, of {versions!r:.100}"
        )


def _programs(function: Certified) -> dict[str, str]:
    """Text of the programs by shape, without the lines of the source that they came from."""
    shapes = {
        key: SCALAR if key == shape_key(SCALAR) else _matrix(key, function.id)
        for key in function.certificate["programs"]
    }
    return {key: without_lines(function.load(x).mlir_module()) for key, x in shapes.items()}


def _matrix(key: str, id: str) -> tuple[int, int]:
    found = _SHAPE.fullmatch(key)
    if not found:
        raise CertificateError(
            f"a program of code {id} must be for INPUTSxOUTPUTS, got {key!r:.40}"
        )
    return int(found[1]), int(found[2])
