"""Access to `nanoevolve_jax.codegen`, which supports rewritten functions and may be absent.

Nothing but this module names that package, and it is imported only when a policy has code.
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
    """Functions of the module `nanoevolve_jax.codegen.plugin`."""

    def require_validated(self, codes: Iterable[Code], isolation: str) -> None:
        """Validates code that this machine has not validated before."""

    def require_exportable(self, code: Code) -> None:
        """Checks sources before they are written into an exported file."""

    def export_check(self, code: Code, isolation: str) -> Check:
        """Returns the comparison of an exported file with its policy, run in the sandbox."""


def _support() -> CodeSupport:
    try:
        return importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        raise UserError(
            f"rewritten functions need the package nanoevolve_jax.codegen, which lacks {error.name}"
        ) from None


def require_validated(codes: Iterable[Code | None], isolation: str) -> None:
    """Validates in the sandbox the code that this machine has not validated before.

    Args:
      codes: Code of the policies that are to be trained; None for built-in functions.
      isolation: `REQUIRED` or `AVAILABLE`.

    Raises:
      CertificateError: If a function is refused, or its programs differ from those of its source.
      ConfigError: If there is code to validate and this machine lacks a required wall.
    """
    if rewritten := [code for code in codes if code]:
        _support().require_validated(rewritten, isolation)


def require_exportable(code: Code | None) -> None:
    """Checks that each source is within the language of rewritten functions.

    Raises:
      CertificateError: If one is not; the message names its certificate.
    """
    if code:
        _support().require_exportable(code)


def export_check(code: Code | None, isolation: str) -> Check:
    """Returns the function that compares an exported optax file with its policy.

    The file is imported in this process, or in the sandbox if it contains rewritten functions.

    Raises:
      ConfigError: If there is code and this machine lacks a required wall.
    """
    return _support().export_check(code, isolation) if code else check_optax
