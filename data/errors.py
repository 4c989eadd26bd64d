"""Errors about data, and the type of a progress callback."""

from collections.abc import Callable

from nanoevolve_jax.errors import UserError

# Called with a description of the work, the amount done, and the total, 0 if that is unknown.
Progress = Callable[[str, int, int], None]


class CorpusError(UserError):
    """A corpus, a tokenizer or a batch size that cannot be used; the message is one line."""

    def __init__(self, message: str):
        """Joins the lines of `message`, which may quote a library's error of several lines."""
        super().__init__(" ".join(message.split()))


class TooLittleTextError(CorpusError):
    """Text that is too small or too uniform for the vocabulary."""
