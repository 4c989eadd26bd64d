"""Access to the optional package `nanoevolve_jax.codegen`, which supports rewritten functions.

The core package uses `nanoevolve_jax.codegen` through this module alone, and imports it only when a
policy contains rewritten functions.
"""

import importlib
from collections.abc import Iterable
from typing import Protocol

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.exports.agreement import Check, check_optax
from nanoevolve_jax.policy.certified import Code

REQUIRED, AVAILABLE = "required", "available"
"""Values of `config.codegen.isolation`: every wall of the sandbox, or the walls at hand."""

_MODULE = "nanoevolve_jax.codegen.plugin"


class CodeSupport(Protocol):
    """Interface of the module `nanoevolve_jax.codegen.plugin`."""

    def require_validated(self, codes: Iterable[Code], isolation: str) -> None:
        """Validates code that has not been validated on this machine before."""

    def require_exportable(self, code: Code) -> None:
        """Checks the sources of rewritten functions before they are written to an exported file."""

    def export_check(self, code: Code, isolation: str) -> Check:
        """Returns a function that compares an exported file with its policy in the sandbox."""


def _support() -> CodeSupport:
    try:
        return importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        raise UserError(
            f"rewritten functions need the package nanoevolve_jax.codegen, which lacks {error.name}"
        ) from None


def require_validated(codes: Iterable[Code | None], isolation: str) -> None:
    """Validates, in the sandbox, code that has not been validated on this machine before.

    Args:
      codes: Rewritten functions of each policy to train. None stands for a policy that uses only
        built-in functions.
      isolation: Required isolation of the sandbox, either `REQUIRED` or `AVAILABLE`.

    Raises:
      UserError: If there is code to validate and the package `nanoevolve_jax.codegen` or one of its
        dependencies is not installed.
      CertificateError: If a function is refused, or if its programs differ from the programs that
        its source compiles to.
      ConfigError: If there is code to validate and the sandbox of this machine lacks a required
        protection.
    """
    if rewritten := [code for code in codes if code]:
        _support().require_validated(rewritten, isolation)


def require_exportable(code: Code | None) -> None:
    """Checks that every source is in the language of rewritten functions.

    Args:
      code: Rewritten functions of a policy, or None if it uses only built-in functions.

    Raises:
      UserError: If there is code and the package `nanoevolve_jax.codegen` or one of its
        dependencies is not installed.
      CertificateError: If a source is not in the language. The message names its certificate.
    """
    if code:
        _support().require_exportable(code)


def export_check(code: Code | None, isolation: str) -> Check:
    """Returns the function that compares an exported optax file with its policy.

    The returned function imports the file in this process. If the file contains rewritten
    functions, it imports the file in the sandbox instead.

    Args:
      code: Rewritten functions of a policy, or None if it uses only built-in functions.
      isolation: Required isolation of the sandbox, either `REQUIRED` or `AVAILABLE`.

    Raises:
      UserError: If there is code and the package `nanoevolve_jax.codegen` or one of its
        dependencies is not installed.
      ConfigError: If there is code and the sandbox of this machine lacks a required protection.
    """
    return _support().export_check(code, isolation) if code else check_optax
