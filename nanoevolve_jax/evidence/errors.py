"""Mistakes about evidence."""

from nanoevolve_jax.errors import UserError


class EvidenceError(UserError):
    """Evidence that cannot be used or made; the message says which and why, in one line."""
