"""Text for a model: corpora, tokenizer, packed rows, batches as a function of (seed, step)."""

from collections.abc import Callable

from nanoevolve_jax.errors import UserError

# (description of the work, amount done, total amount or 0 if unknown)
Progress = Callable[[str, int, int], None]


class CorpusError(UserError):
    """A mistake about data, in one line."""

    def __init__(self, message: str):
        """Joins the lines of `message`, because messages of libraries may have several."""
        super().__init__(" ".join(message.split()))


class TooLittleTextError(CorpusError):
    """The text is too small or too uniform for the vocabulary."""
