"""Errors about evidence."""

from nanoevolve_jax.errors import UserError


class EvidenceError(UserError):
    """An error about evidence that cannot be used or collected. Its message is a single line."""
