"""Byte-pair encoding as NanoChat does it: trained by rustbpe, run by tiktoken.

The split pattern (numbers in groups of at most two digits), the nine special tokens and their
place behind the merges are facts of NanoChat:
https://github.com/karpathy/nanochat/blob/master/nanochat/tokenizer.py
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import rustbpe
import tiktoken
from nanoevolve_jax.data.errors import CorpusError, Progress, TooLittleTextError
from nanoevolve_jax.data.files import write_atomically

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# Only the first is met in pretraining text; the others keep the vocabulary NanoChat's own.
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

# NanoChat trains on at most this much of one document, so that no document rules the merges.
DOCUMENT_CHARS = 10_000
# More text than this hardly helps: at 1024 tokens twice as much compresses 1 % better.
CHARS_PER_TOKEN = 4096

# tiktoken's regular expressions panic on a run of 999,999 blanks, which exhausts their stack. No
# piece of a cut document holds a run of two of these windows; other documents are not cut.
_BLANK_WINDOW = 2**18
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_CHARS = 40  # of a document, in an error


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """An immutable byte-pair encoding.

    Attributes:
      ranks: the bytes of every ordinary token; a token's index is its id and its merge rank.
      pattern: the regular expression that splits text before merging.
      specials: names of the special tokens, whose ids follow those of the ordinary ones.
    """

    ranks: tuple[bytes, ...]
    pattern: str = PATTERN
    specials: tuple[str, ...] = SPECIAL_TOKENS

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.ranks) + len(self.specials)

    @property
    def bos(self) -> int:
        """Id of the token that begins every document."""
        return len(self.ranks) + self.specials.index("<|bos|>")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal hash of everything that decides the encoding."""
        return hashlib.sha256(self._json().encode()).hexdigest()[:16]

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            name="nanoevolve",
            pat_str=self.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)},
            special_tokens={name: len(self.ranks) + i for i, name in enumerate(self.specials)},
        )

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Encodes documents, each beginning with BOS.

        Text that looks like a special token is ordinary text: it never becomes one. Runs of some
        hundred thousand blanks are cut before they are encoded, see `pieces`.

        Raises:
          CorpusError: when tiktoken fails on a document.
        """
        cut = [pieces(document) for document in documents]
        threads = min(8, os.cpu_count() or 1)
        flat = list(itertools.chain.from_iterable(cut))
        try:
            encoded = self._encoding.encode_ordinary_batch(flat, num_threads=threads)
        except BaseException as error:
            if not _is_panic(error):
                raise
            for document in flat:  # to find the one that cannot be encoded
                with _panics_as_errors(document):
                    self._encoding.encode_ordinary(document)
            raise
        bos, ids = self.bos, iter(encoded)
        return [
            [bos, *itertools.chain.from_iterable(itertools.islice(ids, len(parts)))]
            for parts in cut
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Turns token ids back into text; special tokens read as their names."""
        return self._encoding.decode([int(i) for i in ids])

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [vocab_size]: UTF-8 bytes of each token, 0 for the special ones.

        Bits per byte divides the loss by these; a special token stands for no text, so it
        counts neither as bytes nor (by its zero) as loss.
        """
        lengths = [len(token) for token in self.ranks] + [0] * len(self.specials)
        return np.array(lengths, np.int32)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the tokenizer as JSON, whole or not at all."""
        write_atomically(Path(path), self._json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a tokenizer that `save` wrote; ValueError if it is damaged."""
        try:
            fields = json.loads(Path(path).read_text("utf-8"))
            ranks = tuple(bytes.fromhex(token) for token in fields["ranks"])
            tokenizer = cls(ranks, fields["pattern"], tuple(fields["specials"]))
            if not {*map(bytes, zip(range(256)))} <= set(ranks) or len(set(ranks)) < len(ranks):
                raise ValueError("its tokens must differ and include every byte")
            if (tokenizer.pattern, tokenizer.specials) != (PATTERN, SPECIAL_TOKENS):
                raise ValueError("its pattern and special tokens must be those of this version")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorpusError(f"tokenizer file {path} is damaged ({error}); delete it") from error
        return tokenizer

    def _json(self) -> str:
        ranks = [token.hex() for token in self.ranks]
        fields = {"pattern": self.pattern, "specials": list(self.specials), "ranks": ranks}
        return json.dumps(fields, indent=0)


def train_tokenizer(
    documents: Iterable[str],
    vocab_size: int,
    max_chars: int = 0,
    progress: Progress | None = None,
) -> Tokenizer:
    """Learns a byte-pair encoding; the same documents give the same tokenizer, bit for bit.

    Args:
      documents: training text; read only as far as `max_chars` needs.
      vocab_size: number of tokens to end with, the nine special ones included.
      max_chars: how many characters to learn from, at most `DOCUMENT_CHARS` of one document;
        0 takes `CHARS_PER_TOKEN` for every token of the vocabulary.
      progress: called with the characters read so far.

    Returns:
      A tokenizer with exactly `vocab_size` tokens.

    Raises:
      CorpusError: when `vocab_size` leaves no room for the 256 bytes and the special tokens,
        or when the text is too small or too uniform to give that many merges.
    """
    check_vocab_size(vocab_size)
    trainer = rustbpe.Tokenizer()
    text = _limited(documents, max_chars or CHARS_PER_TOKEN * vocab_size, progress)
    with _panics_as_errors():
        trainer.train_from_iterator(text, vocab_size - len(SPECIAL_TOKENS), pattern=PATTERN)
    ranks = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
    tokenizer = Tokenizer(tuple(token for _, token in ranks))
    if tokenizer.vocab_size != vocab_size:
        raise TooLittleTextError(
            f"data.vocab_size: {vocab_size} is more than this corpus can give; "
            f"its text yields at most {tokenizer.vocab_size} tokens"
        )
    return tokenizer


def check_vocab_size(vocab_size: int) -> None:
    """Raises CorpusError unless the vocabulary can hold the bytes and the special tokens."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise CorpusError(
            f"data.vocab_size: {vocab_size} is too small; at least {SMALLEST_VOCABULARY} "
            f"(256 bytes and {len(SPECIAL_TOKENS)} special tokens)"
        )


def _limited(documents: Iterable[str], max_chars: int, progress: Progress | None) -> Iterator[str]:
    done = 0
    for document in documents:
        text = document[: min(DOCUMENT_CHARS, max_chars - done)]
        if not text.isascii() and (lone := _LONE_SURROGATE.search(text)):
            raise CorpusError(
                f"data.corpus: documents must be Unicode text, got {lone[0]!r} in {_shown(text)}"
            )
        done += len(text)
        if progress:
            progress("reading text for the tokenizer", done, max_chars)
        yield text
        if done >= max_chars:
            return


def pieces(document: str) -> list[str]:
    """Cuts a document within very long runs of whitespace; joined, the pieces are the document.

    A document without such a run is one piece, so that its tokens are those of the whole.
    """
    ends = [
        start + _BLANK_WINDOW
        for start in range(0, len(document), _BLANK_WINDOW)
        if document[start : start + _BLANK_WINDOW].isspace()
    ]
    return [document[a:b] for a, b in itertools.pairwise([0, *ends, len(document)]) if b > a] or [
        document
    ]


def _is_panic(error: BaseException) -> bool:
    """Whether an exception is a panic of Rust code, whose type cannot be imported."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def _panics_as_errors(document: str | None = None) -> Iterator[None]:
    """Turns a panic, which is not an `Exception`, into a CorpusError that names the document."""
    try:
        yield
    except BaseException as error:
        if not _is_panic(error):
            raise
        what = "its text" if document is None else f"the document {_shown(document)}"
        raise CorpusError(f"data.corpus: {what} cannot be tokenised ({error})") from None


def _shown(document: str) -> str:
    """The beginning of a document, and its length."""
    more = "..." if len(document) > _SHOWN_CHARS else ""
    return f"{document[:_SHOWN_CHARS]!r}{more} of {len(document)} characters"
