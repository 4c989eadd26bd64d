"""Functions of code mutation that the core package uses through `nanoevolve_jax.plugins`."""

from nanoevolve_jax.codegen.sandbox.agreement import export_check
from nanoevolve_jax.codegen.sandbox.recertify import require_validated
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.policy.certified import CertificateError, Code

__all__ = ["export_check", "require_exportable", "require_validated"]


def require_exportable(code: Code) -> None:
    """Checks that every source is in the language of rewritten functions.

    The text is checked again because a certificate can be forged, and because the recipient of an
    exported file runs its sources without a sandbox.

    Args:
      code: Rewritten functions of a policy.

    Raises:
      CertificateError: If a source is not in the language. The message names its certificate.
    """
    for function in code.functions:
        try:
            language.check(function.source, function.slot)
        except Refused as error:
            raise CertificateError(
                f"the source of certificate {function.id} must be in the language of rewritten "
                f"functions; {error}"
            ) from None
