"""Validates the code of a run folder before its programs run on this machine.

Certificates are not signed, so a folder from another machine may contain programs that differ from
their source. The user's cache lists the certificates of all code that has been validated on this
machine, and that code is not validated again.
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
_MOST_COST = 1000.0  # highest bound that a campaign can have; costs are not checked again


def remember(function: Certified) -> None:
    """Records that a function has been validated on this machine.

    Args:
      function: Function to record in the user's cache.
    """
    (private_folder(private_folder(user_cache()) / FOLDER) / function.id).touch()


def is_known(function: Certified) -> bool:
    """Returns whether a function has been validated on this machine.

    Args:
      function: Function to look up in the user's cache.
    """
    return (user_cache() / FOLDER / function.id).is_file()


def require_validated(codes: Iterable[Code], isolation: str) -> None:
    """Validates, in the sandbox, code that has not been validated on this machine before.

    Args:
      codes: Rewritten functions of the policies to train.
      isolation: Required isolation, either `runner.REQUIRED` or `runner.AVAILABLE`.

    Raises:
      CertificateError: If a function is refused, or if its programs differ from the programs that
        its source compiles to.
      ConfigError: If there is code to validate and the sandbox of this machine lacks a required
        protection.
    """
    for function in {f.id: f for code in codes for f in code.functions}.values():
        if not is_known(function):
            validate(function, runner.isolation(isolation))
            remember(function)


def validate(function: Certified, isolation: runner.Isolation) -> None:
    """Validates the source of a function again and compares the new programs with its programs.

    Args:
      function: Function with its source, certificate and programs.
      isolation: Isolation of the sandbox.

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
    """Returns the text of each program by its shape key, without line numbers of the source."""
    return {k: without_lines(function.load(x).mlir_module()) for k, x in _shapes(function).items()}


def _shapes(function: Certified) -> dict[str, Shape]:
    """Returns the shapes of a function's programs by their shape keys."""
    shapes: dict[str, Shape] = {}
    for key in function.certificate["programs"]:
        match = _SHAPE.fullmatch(key)
        if match is None and key != shape_key(SCALAR):
            raise CertificateError(
                f"a program of code {function.id} must be for INPUTSxOUTPUTS, got {key!r:.40}"
            )
        shapes[key] = (int(match[1]), int(match[2])) if match else SCALAR
    return shapes
