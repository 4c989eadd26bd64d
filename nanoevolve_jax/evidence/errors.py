"""Mistakes about evidence."""


class EvidenceError(ValueError):
    """Evidence that cannot be used or made; the message says which and why, in one line."""
