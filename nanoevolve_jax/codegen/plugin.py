"""The functions through which the core reaches code mutation; see `nanoevolve_jax.plugins`."""

from nanoevolve_jax.codegen.sandbox.agreement import export_check
from nanoevolve_jax.codegen.sandbox.recertify import require_validated
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.policy.certified import CertificateError, Code

__all__ = ["export_check", "require_exportable", "require_validated"]


def require_exportable(code: Code) -> None:
    """Checks that each source is within the language of rewritten functions.

    Whoever receives an exported file runs its sources without a sandbox, and a certificate could be
    forged, so the text is checked again.

    Raises:
      CertificateError: If one is not; the message names its certificate.
    """
    for function in code.functions:
        try:
            language.check(function.source, function.slot)
        except Refused as error:
            raise CertificateError(
                f"the source of certificate {function.id} must be in the language of rewritten "
                f"functions; {error}"
            ) from None
