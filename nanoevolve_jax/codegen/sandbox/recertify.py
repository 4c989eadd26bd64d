"""Validates code of a received run folder before its programs run on this machine.

A certificate has no signature, so the author of a folder can put programs into it that compute
something else than the source beside them. The user's cache lists what this machine has validated,
so its own code is not validated again.
"""

import re
from collections.abc import Iterable

from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.execution.machine import private_folder, user_cache
from nanoevolve_jax.policy.certified import CertificateError, Certified, Code
from nanoevolve_jax.policy.slots import SCALAR, Shape, shape_key
from nanoevolve_jax.policy.stablehlo import without_lines

FOLDER = "certified"
"""Folder of the user's cache with an empty file per certificate."""
_SHAPE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
_MOST_COST = 1000.0  # highest bound of a campaign; cost is not what is checked here


def remember(function: Certified) -> None:
    """Records that this machine has validated a function."""
    (private_folder(private_folder(user_cache()) / FOLDER) / function.id).touch()


def is_known(function: Certified) -> bool:
    """Returns whether this machine has validated a function."""
    return (user_cache() / FOLDER / function.id).is_file()


def require_validated(codes: Iterable[Code], isolation: str) -> None:
    """Validates in the sandbox the code that this machine has not validated before.

    Args:
      codes: Code of the policies that are to be trained.
      isolation: `runner.REQUIRED` or `runner.AVAILABLE`.

    Raises:
      CertificateError: If a function is refused, or its programs differ from those of its source.
      ConfigError: If there is code to validate and this machine lacks a required wall.
    """
    for function in {f.id: f for code in codes for f in code.functions}.values():
        if not is_known(function):
            validate(function, runner.isolation(isolation))
            remember(function)


def validate(function: Certified, isolation: runner.Isolation) -> None:
    """Validates a source and compares its programs with those of the certificate.

    Raises:
      CertificateError: If the source is refused or the programs differ.
    """
    matrices = [x for x in _shapes(function).values() if x is not SCALAR]
    dtype = function.certificate["dtype"]
    verdict = certify.validate(
        *(function.slot, function.source, matrices, dtype),
        *(runner.Limits(), isolation, _MOST_COST),
    )
    if verdict.certified is None:
        raise CertificateError(
            f"code {function.id} must pass validation, but is refused on this machine "
            f"({verdict.refusal.reason}: {verdict.refusal.message})"
        )
    here = verdict.certified
    if here.computation != function.computation or _programs(here) != _programs(function):
        raise CertificateError(
            f"the programs of code {function.id} must be those that its source gives here with "
            f"{here.certificate['versions']}; they are others, of "
            f"{function.certificate.get('versions')!r:.100}"
        )


def _programs(function: Certified) -> dict[str, str]:
    """Text of the programs by shape, without line numbers of the source."""
    return {k: without_lines(function.load(x).mlir_module()) for k, x in _shapes(function).items()}


def _shapes(function: Certified) -> dict[str, Shape]:
    """Shapes of a function's programs by their names."""
    shapes: dict[str, Shape] = {}
    for key in function.certificate["programs"]:
        match = _SHAPE.fullmatch(key)
        if match is None and key != shape_key(SCALAR):
            raise CertificateError(
                f"a program of code {function.id} must be for INPUTSxOUTPUTS, got {key!r:.40}"
            )
        shapes[key] = (int(match[1]), int(match[2])) if match else SCALAR
    return shapes
