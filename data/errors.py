"""The one error that a user's mistake about data raises, and the type of a progress callback."""

from collections.abc import Callable

from nanoevolve_jax.errors import UserError

# (what is being done, how much is done, how much there is in all or 0 when that is not known)
Progress = Callable[[str, int, int], None]


class CorpusError(UserError):
    """A mistake about data, said in one line: the field, its value and what is allowed."""

    def __init__(self, message: str):
        """Folds `message` into one line, because libraries' own messages may hold several."""
        super().__init__(" ".join(message.split()))


class TooLittleTextError(CorpusError):
    """The text is too small or too uniform for the vocabulary."""
