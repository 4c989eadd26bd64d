"""NanoChat's byte-pair encoding: trained by rustbpe, run by tiktoken.

The split pattern (numbers in groups of at most two digits), the nine special tokens and their
ids after the merges are those of NanoChat:
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

from nanoevolve_jax.data import CorpusError, Progress, TooLittleTextError
from nanoevolve_jax.data.files import write_atomically
from nanoevolve_jax.errors import must

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# Pretraining text has only the first; the others keep the vocabulary equal to NanoChat's.
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

# NanoChat trains on at most this much of a document, so that none dominates the merges.
DOCUMENT_CHARS = 10_000
# More text hardly helps: with 1024 tokens, twice as much text compresses 1 % better.
CHARS_PER_TOKEN = 4096

# tiktoken's regular expressions overflow their stack on a run of 999,999 blanks. Documents with
# such runs are cut, so that no piece has a run as long as two windows.
_BLANK_WINDOW = 2**18
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_CHARS = 40  # characters of a document in an error


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """An immutable byte-pair encoding.

    Attributes:
      ranks: Bytes of each ordinary token; its index is its id and its merge rank.
      pattern: Regular expression that splits text before merging.
      specials: Names of the special tokens, whose ids follow those of the ordinary tokens.
    """

    ranks: tuple[bytes, ...]
    pattern: str = PATTERN
    specials: tuple[str, ...] = SPECIAL_TOKENS

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including the special ones."""
        return len(self.ranks) + len(self.specials)

    @property
    def bos(self) -> int:
        """Id of the token that begins every document."""
        return len(self.ranks) + self.specials.index("<|bos|>")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal hash of everything that the encoding depends on."""
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

        Text that looks like a special token is encoded as ordinary text. Runs of several hundred
        thousand blanks are cut before encoding, see `pieces`.

        Raises:
          CorpusError: if tiktoken fails on a document.
        """
        cut = [pieces(document) for document in documents]
        threads = min(8, os.cpu_count() or 1)
        flat = list(itertools.chain.from_iterable(cut))
        try:
            encoded = self._encoding.encode_ordinary_batch(flat, num_threads=threads)
        except BaseException as error:
            if not _is_panic(error):
                raise
            for document in flat:  # find the one that cannot be encoded
                with _panics_as_errors(document):
                    self._encoding.encode_ordinary(document)
            raise
        bos, ids = self.bos, iter(encoded)
        return [
            [bos, *itertools.chain.from_iterable(itertools.islice(ids, len(parts)))]
            for parts in cut
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids; special tokens become their names."""
        return self._encoding.decode([int(i) for i in ids])

    def token_bytes(self) -> np.ndarray:
        """Returns the number of UTF-8 bytes of each token, int32 [vocab_size].

        Bits per byte divides the loss by these. Special tokens have 0 bytes, because they
        represent no text; their losses are not counted either.
        """
        lengths = [len(token) for token in self.ranks] + [0] * len(self.specials)
        return np.array(lengths, np.int32)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the tokenizer atomically as JSON."""
        write_atomically(Path(path), self._json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a tokenizer that `save` wrote; CorpusError if it is damaged."""
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
    """Learns a byte-pair encoding; the same documents give exactly the same tokenizer.

    Args:
      documents: Training text; only as many documents are read as `max_chars` needs.
      vocab_size: Number of tokens, including the nine special ones.
      max_chars: Number of characters to learn from, at most `DOCUMENT_CHARS` per document; 0
        means `CHARS_PER_TOKEN` per token of the vocabulary.
      progress: Callback with the number of characters read.

    Returns:
      Tokenizer with exactly `vocab_size` tokens.

    Raises:
      CorpusError: if `vocab_size` is too small for the 256 bytes and the special tokens, or the
        text is too small or too uniform for that many merges.
    """
    check_vocab_size(vocab_size)
    trainer = rustbpe.Tokenizer()
    text = _limited(documents, max_chars or CHARS_PER_TOKEN * vocab_size, progress)
    with _panics_as_errors():
        trainer.train_from_iterator(text, vocab_size - len(SPECIAL_TOKENS), pattern=PATTERN)
    ranks = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
    tokenizer = Tokenizer(tuple(token for _, token in ranks))
    if tokenizer.vocab_size != vocab_size:
        rule = f"be at most {tokenizer.vocab_size}, the tokens that the text of this corpus yields"
        raise TooLittleTextError(must("config.data.vocab_size", rule, vocab_size))
    return tokenizer


def check_vocab_size(vocab_size: int) -> None:
    """Raises CorpusError unless all bytes and special tokens fit into the vocabulary."""
    if vocab_size < SMALLEST_VOCABULARY:
        tokens = f"256 bytes and {len(SPECIAL_TOKENS)} special tokens"
        rule = f"be at least {SMALLEST_VOCABULARY} ({tokens})"
        raise CorpusError(must("config.data.vocab_size", rule, vocab_size))


def _limited(documents: Iterable[str], max_chars: int, progress: Progress | None) -> Iterator[str]:
    done = 0
    for document in documents:
        text = document[: min(DOCUMENT_CHARS, max_chars - done)]
        if not text.isascii() and (lone := _LONE_SURROGATE.search(text)):
            raise CorpusError(
                f"config.data.corpus must have documents of Unicode text, got {lone[0]!r} in "
                f"{_shown(text)}"
            )
        done += len(text)
        if progress:
            progress("reading text for the tokenizer", done, max_chars)
        yield text
        if done >= max_chars:
            return


def pieces(document: str) -> list[str]:
    """Cuts a document within very long runs of whitespace, without losing any text.

    A document without such a run stays one piece, so its tokens do not change.
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
    """Returns whether an exception is a panic of Rust code, whose type cannot be imported."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def _panics_as_errors(document: str | None = None) -> Iterator[None]:
    """Converts a panic, which is not an `Exception`, into a CorpusError with the document."""
    try:
        yield
    except BaseException as error:
        if not _is_panic(error):
            raise
        text = "text" if document is None else f"document {_shown(document)}"
        raise CorpusError(f"config.data.corpus: {text} cannot be tokenised ({error})") from None


def _shown(document: str) -> str:
    """Returns the beginning of a document and its length, for an error."""
    more = "..." if len(document) > _SHOWN_CHARS else ""
    return f"{document[:_SHOWN_CHARS]!r}{more} of {len(document)} characters"
