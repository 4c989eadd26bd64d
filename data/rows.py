"""Rows of tokens from a corpus: tokenised and packed once, stored on disk, memory-mapped."""

import bisect
import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from nanoevolve_jax.data import CorpusError, Progress, TooLittleTextError
from nanoevolve_jax.data.batches import batch, batches, check_horizon
from nanoevolve_jax.data.corpus import Corpus, load_corpus
from nanoevolve_jax.data.files import (
    building,
    discard,
    expanded,
    publish,
    sha256_file,
    write_atomically,
)
from nanoevolve_jax.data.tokenizer import Tokenizer, check_vocab_size, train_tokenizer
from nanoevolve_jax.errors import must

__all__ = ["Rows", "batch", "batches", "build_rows", "check_horizon", "pack"]

_log = logging.getLogger(__name__)

# Increase this whenever the same corpus and settings give different rows than before.
_FORMAT = 2
_ENCODE_DOCUMENTS = 512
_REPORT_ROWS = 256
# Characters per document of `stdlib` and token of a row; a third is dropped, as in NanoChat.
_CHARS_PER_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed tokens of a corpus.

    Attributes:
      train: Training rows, memory-mapped, uint16 [N, T + 1] (uint32 above 65,536 tokens).
      folds: Validation rows in disjoint parts, each [M_i, T + 1] of the same dtype. A document and
        its copies are in one fold. No row is in two folds, or in a fold and in `train`.
      tokenizer: Tokenizer of the rows.
      token_bytes: UTF-8 bytes of each token, int32 [vocab_size]; 0 for special tokens.
      sequence_len: Tokens that a row predicts, T.
      fingerprints: Hexadecimal hashes of `corpus`, `tokenizer` and `rows`.
    """

    train: np.ndarray
    folds: tuple[np.ndarray, ...]
    tokenizer: Tokenizer
    token_bytes: np.ndarray
    sequence_len: int
    fingerprints: dict[str, str]


def build_rows(
    corpus: str,
    *,
    vocab_size: int,
    sequence_len: int,
    cache_dir: str | Path,
    shards: int = 0,
    max_train_tokens: int = 0,
    max_validation_tokens: int = 2**21,
    folds: int = 1,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> Rows:
    """Returns the rows of a corpus, from the cache if they were built before.

    Args:
      corpus: Name of a corpus, see `load_corpus`.
      vocab_size: Number of tokens, including the special ones.
      sequence_len: Tokens that a row predicts, T.
      cache_dir: Folder for downloads, tokenizers and rows; processes may share it.
      shards: Largest number of training shards, see `load_corpus`.
      max_train_tokens: Number of tokens that the training rows predict; 0 means no limit.
      max_validation_tokens: Number of tokens that all validation rows predict.
      folds: Number of parts of the validation documents, which are packed separately.
      tokenizer: Tokenizer of another corpus with `vocab_size` tokens, to evaluate its model on
        this text; by default, one is trained on this corpus.
      progress: Callback for slow steps.

    Raises:
      CorpusError: if a value is out of range or the corpus is unusable.
    """
    check_vocab_size(vocab_size)
    if sequence_len < 1:
        raise CorpusError(must("config.model.sequence_len", "be at least 1", sequence_len))
    if max_train_tokens < 0:
        rule = "be at least 0 (no limit)"
        raise CorpusError(must("config.data.max_train_tokens", rule, max_train_tokens))
    if folds < 1:
        raise CorpusError(must("config.data.folds", "be at least 1", folds))
    if tokenizer and tokenizer.vocab_size != vocab_size:
        rule = f"be {tokenizer.vocab_size}, as in the given tokenizer"
        raise CorpusError(must("config.data.vocab_size", rule, vocab_size))
    cache_dir = expanded(cache_dir)
    source = load_corpus(
        corpus,
        cache_dir=cache_dir,
        shards=shards,
        document_chars=_CHARS_PER_TOKEN * sequence_len,
        progress=progress,
    )
    tokenizer = tokenizer or _cached_tokenizer(source, vocab_size, cache_dir, progress)
    fields = {
        "format": _FORMAT,
        "corpus": source.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "sequence_len": sequence_len,
        "max_train_tokens": max_train_tokens,
        "max_validation_tokens": max_validation_tokens,
        "folds": folds,
    }
    key = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
    target = cache_dir / "rows" / key
    fingerprints = {"corpus": source.fingerprint, "tokenizer": tokenizer.fingerprint, "rows": key}

    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    if not _intact(target, fields, dtype):
        with building(target.parent, key) as folder:
            _write(folder, source, tokenizer, fields, dtype, progress)
            while not publish(folder, target):
                if _intact(target, fields, dtype):  # another process was faster
                    break
    return _open(target, tokenizer, fields, dtype, fingerprints)


def pack(
    documents: Iterable[list[int]], row_length: int, buffer_size: int = 1000
) -> Iterator[np.ndarray]:
    """Packs tokenised documents into full rows without padding, each beginning with a document.

    This is NanoChat's best-fit rule
    (https://github.com/karpathy/nanochat/blob/master/nanochat/dataloader.py):

    1. Keep a buffer of `buffer_size` documents.
    2. Fill the row with the largest document of the buffer that fits entirely, repeatedly.
    3. If none fits, crop the shortest one to the remaining space and drop its rest.

    Of documents with equal lengths, the first one is taken. The share of dropped tokens depends on
    the length of documents relative to a row: about 35 % at 2048 tokens on web text (NanoChat's
    figure), and nearly all if each document is many rows long, because each then fills one row.

    Args:
      documents: Token ids of each document, beginning with BOS; empty documents are skipped.
      row_length: Tokens per row, T + 1.
      buffer_size: Number of documents to choose from.

    Yields:
      Token ids, uint32 [row_length]. The last, incomplete row is dropped.
    """
    source = (document for document in documents if document)
    waiting: dict[int, collections.deque[list[int]]] = {}
    lengths: list[int] = []  # sorted keys of `waiting`
    count = 0
    row: list[int] = []
    while True:
        while count < buffer_size and (document := next(source, None)) is not None:
            length = len(document)
            if length not in waiting:
                waiting[length] = collections.deque()
                bisect.insort(lengths, length)
            waiting[length].append(document)
            count += 1
        if not count:
            return
        space = row_length - len(row)
        # Largest length that fits; index 0 is the shortest and is used if none fits.
        index = max(bisect.bisect_right(lengths, space) - 1, 0)
        length = lengths[index]
        row += waiting[length].popleft()[:space]
        count -= 1
        if not waiting[length]:
            del waiting[length], lengths[index]
        if len(row) == row_length:
            yield np.array(row, np.uint32)
            row = []


def _cached_tokenizer(
    corpus: Corpus, vocab_size: int, cache_dir: Path, progress: Progress | None
) -> Tokenizer:
    path = cache_dir / "tokenizers" / f"{corpus.fingerprint}-{vocab_size}.json"
    if path.exists():
        try:
            tokenizer = Tokenizer.load(path)
            if tokenizer.vocab_size == vocab_size:
                return tokenizer
            _log.warning(
                "%s has %d tokens instead of %d and is trained again",
                *(path, tokenizer.vocab_size, vocab_size),
            )
        except CorpusError as error:
            _log.warning("%s; it is trained again", error)
    corpus.check_text()
    try:
        tokenizer = train_tokenizer(corpus.train(), vocab_size, progress=progress)
    except TooLittleTextError as error:
        raise CorpusError(f"{error}{corpus.copies_note()}") from error
    tokenizer.save(path)
    return tokenizer


def _write(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    fields: dict,
    dtype: np.dtype,
    progress: Progress | None,
) -> None:
    """Writes the files of all parts, then meta.json with their sizes and hashes."""
    corpus.check_text()
    length = fields["sequence_len"] + 1
    meta = {"fields": fields, "dtype": dtype.name, "files": {}}
    held_out: set[bytes] = set()
    folds = fields["folds"]
    # Validation comes first, so that training rows equal to validation rows can be left out.
    parts = {_fold_name(k): functools.partial(_fold, corpus, k, folds) for k in range(folds)} | {
        "train": corpus.train
    }
    for part, documents in parts.items():
        is_train = part == "train"
        label = part if is_train else "validation"
        tokens = fields["max_train_tokens"] if is_train else fields["max_validation_tokens"] / folds
        limit = math.ceil(tokens / fields["sequence_len"])
        packed = pack(_encoded(documents(), tokenizer), length)
        rows = (row.astype(dtype).tobytes() for row in packed)
        rows = itertools.filterfalse(held_out.__contains__, rows)
        path = folder / f"{part}.bin"
        count = 0
        with open(path, "wb") as file:
            for content in itertools.islice(rows, limit or None):
                file.write(content)
                count += 1
                if progress and count % _REPORT_ROWS == 0:
                    progress(f"packing {label} rows", count, limit)
        if not count:
            raise CorpusError(_too_small(corpus, part, documents, tokenizer, fields))
        if not is_train:
            content = path.read_bytes()
            size = len(content) // count
            held_out.update(content[i : i + size] for i in range(0, len(content), size))
        if progress:
            progress(f"packing {label} rows", count, count)
        meta["files"][path.name] = {
            "rows": count,
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
    write_atomically(folder / "meta.json", json.dumps(meta, indent=1).encode())


def _too_small(
    corpus: Corpus,
    part: str,
    documents: Callable[[], Iterator[str]],
    tokenizer: Tokenizer,
    fields: dict,
) -> str:
    """Returns the error for a part of a corpus without rows."""
    length, folds = fields["sequence_len"], fields["folds"]
    field, name = "config.data.corpus", corpus.name
    row = f"that fills a row of config.model.sequence_len={length}"
    if part != "train":
        if next(documents(), None) is None:
            distinct = len(set(corpus.validation()))
            rule = f"be smaller, because {name!r} has {distinct} distinct validation documents"
            return must("config.data.folds", rule, folds)
        each = f" in each of config.data.folds={folds}" if folds > 1 else ""
        return must(field, f"have validation text {row}{each}", name)
    if next(pack(_encoded(documents(), tokenizer), length + 1), None) is not None:
        return must(field, "have training rows that are not also validation rows", name)
    return must(field, f"have training text {row}", name) + corpus.copies_note()


def _fold_name(number: int) -> str:
    return f"validation_{number}" if number else "validation"


def _fold(corpus: Corpus, number: int, folds: int) -> Iterator[str]:
    """Yields the validation documents of one fold, which their content decides."""
    for document in corpus.validation():
        digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if int.from_bytes(digest) % folds == number:
            yield document


def _encoded(documents: Iterator[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    while chunk := list(itertools.islice(documents, _ENCODE_DOCUMENTS)):
        yield from tokenizer.encode(chunk)


def _intact(target: Path, fields: dict, dtype: np.dtype) -> bool:
    """Returns whether `target` has the rows of these fields; a damaged folder is deleted."""
    if not target.exists():
        return False
    row_bytes = (fields["sequence_len"] + 1) * dtype.itemsize
    parts = {f"{part}.bin" for part in ("train", *map(_fold_name, range(fields["folds"])))}
    try:
        meta = json.loads((target / "meta.json").read_text())
        files = meta["files"]
        is_of_fields = (meta["fields"], meta["dtype"], set(files)) == (fields, dtype.name, parts)
        damaged = [] if is_of_fields else ["meta.json"]
        for name in sorted(parts):
            size = (target / name).stat().st_size
            if (
                not size
                or size % row_bytes
                or size != files[name]["bytes"]
                or sha256_file(target / name) != files[name]["sha256"]
            ):
                damaged.append(name)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        damaged = [str(error)]
    if damaged:
        _log.warning("cached rows %s are damaged (%s) and are built again", target, damaged[0])
        discard(target)
    return not damaged


def _open(
    target: Path,
    tokenizer: Tokenizer,
    fields: dict,
    dtype: np.dtype,
    fingerprints: dict[str, str],
) -> Rows:
    def open_part(part: str) -> np.ndarray:
        tokens = np.memmap(target / f"{part}.bin", dtype=dtype, mode="r")
        return tokens.reshape(-1, fields["sequence_len"] + 1)

    folds = tuple(open_part(_fold_name(k)) for k in range(fields["folds"]))
    train, token_bytes = open_part("train"), tokenizer.token_bytes()
    return Rows(train, folds, tokenizer, token_bytes, fields["sequence_len"], fingerprints)
