"""Certified sources read once more before they go into a file that people run.

A search runs their programs alone, and the file is tried in the jail; whoever takes it home runs it
without one. A certificate that somebody forged says nothing of the sources.
"""

from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.policy.certified import CertificateError, Code


def require_vetted(code: Code | None) -> None:
    """Refuses code with a source that is outside the language that functions are written in.

    Raises:
      CertificateError: naming the certificate and what its source does.
    """
    for function in code.functions if code else ():
        try:
            language.check(function.source, function.slot)
        except Refused as error:
            raise CertificateError(
                f"the source of certificate {function.id} is refused: {error}; allowed: code that "
                "a campaign certified"
            ) from None
