"""Rows of tokens: a corpus tokenised and packed once, cached on disk and memory-mapped."""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from nanoevolve_jax.data.batches import batch, batches, check_horizon
from nanoevolve_jax.data.corpus import Corpus, load_corpus
from nanoevolve_jax.data.errors import CorpusError, Progress, TooLittleTextError
from nanoevolve_jax.data.files import (
    building,
    discard,
    expanded,
    publish,
    sha256_file,
    write_atomically,
)
from nanoevolve_jax.data.packing import pack
from nanoevolve_jax.data.tokenizer import Tokenizer, check_vocab_size, train_tokenizer

from nanoevolve_jax.errors import must

__all__ = ["Rows", "batch", "batches", "build_rows", "check_horizon", "pack"]

_log = logging.getLogger(__name__)

# Increase this whenever the same corpus and settings would give different rows.
_FORMAT = 2
_ENCODE_DOCUMENTS = 512
_REPORT_ROWS = 256
# Length of a document of `stdlib` per token of a row; loses about a third, like NanoChat's data.
_CHARS_PER_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed tokens of a corpus, and the byte counts needed for bits per byte.

    Attributes:
      train: Training rows, memory-mapped, uint16[N, T + 1] (uint32 above 65,536 tokens).
      folds: Disjoint parts of the validation rows, each [M_i, T + 1] of the same dtype. Copies of a
        document are in one fold. No row is in two folds, or both in a fold and in `train`.
      tokenizer: Tokenizer of the rows.
      token_bytes: UTF-8 bytes of each token, 0 for special tokens, int32[vocab_size].
      sequence_len: Number of predicted tokens per row, T.
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
    """Returns the rows of a corpus, building them if they are not cached.

    Args:
      corpus: Name of the corpus; see `load_corpus`.
      vocab_size: Size of the vocabulary, including special tokens.
      sequence_len: Number of predicted tokens per row, T.
      cache_dir: Folder for downloads, tokenizers and rows; any number of processes may share it.
      shards: Maximum number of training shards; see `load_corpus`.
      max_train_tokens: Maximum number of predicted training tokens, rounded up to full rows; 0
        means no limit.
      max_validation_tokens: Maximum number of predicted validation tokens in all folds together.
      folds: Number of parts of the validation documents, each packed separately.
      tokenizer: Tokenizer of another corpus, with `vocab_size` tokens; by default one is trained
        on this corpus.
      progress: Callback for the progress of downloads and building.

    Raises:
      CorpusError: If the corpus cannot be used with these settings.
    """
    check_vocab_size(vocab_size)
    if sequence_len < 1:
        raise CorpusError(must("config.model.sequence_len", "be at least 1", sequence_len))
    if max_train_tokens < 0:
        raise CorpusError(
            must("config.data.max_train_tokens", "be at least 0 (all)", max_train_tokens)
        )
    if folds < 1:
        raise CorpusError(must("config.data.folds", "be at least 1", folds))
    if tokenizer and tokenizer.vocab_size != vocab_size:
        raise CorpusError(
            must(
                "config.data.vocab_size",
                f"be that of the given tokenizer, {tokenizer.vocab_size}",
                vocab_size,
            )
        )
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
                if _intact(target, fields, dtype):  # Another process was faster.
                    break
    return _open(target, tokenizer, fields, dtype, fingerprints)


def _cached_tokenizer(
    corpus: Corpus, vocab_size: int, cache_dir: Path, progress: Progress | None
) -> Tokenizer:
    path = cache_dir / "tokenizers" / f"{corpus.fingerprint}-{vocab_size}.json"
    if path.exists():
        try:
            found = Tokenizer.load(path)
            if found.vocab_size == vocab_size:
                return found
            _log.warning(
                "%s has %d tokens instead of %d: training it again",
                *(path, found.vocab_size, vocab_size),
            )
        except CorpusError as error:
            _log.warning("%s: training it again", error)
    corpus.check_text()
    try:
        tokenizer = train_tokenizer(corpus.train(), vocab_size, progress=progress)
    except TooLittleTextError as error:
        raise CorpusError(f"{error}{corpus.left_out()}") from error
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
    """Writes the rows of each part, then meta.json with their sizes and hashes."""
    corpus.check_text()
    length = fields["sequence_len"] + 1
    meta = {"fields": fields, "dtype": dtype.name, "files": {}}
    held_out: set[bytes] = set()
    folds = fields["folds"]
    # Validation comes first, so training rows that equal a validation row can be left out.
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
    """Returns the error for a part of a corpus that has no row."""
    length, folds = fields["sequence_len"], fields["folds"]
    where = f"config.data.corpus={corpus.name!r}"
    if part != "train":
        if next(documents(), None) is None:
            distinct = len(set(corpus.validation()))
            return (
                must("config.data.folds", "leave a document in each fold", folds)
                + f" for the {distinct} distinct validation documents of {corpus.name!r}"
            )
        each = f" in each of {folds} config.data.folds" if folds > 1 else ""
        return (
            f"{where} must have validation text for at least one row of config.model.sequence_len "
            f"{length}{each}, got too little"
        )
    if next(pack(_encoded(documents(), tokenizer), length + 1), None) is not None:
        return f"{where} must have training rows that are not validation rows, got none"
    return (
        f"{where} must have training text for at least one row of config.model.sequence_len "
        f"{length}, got too little{corpus.left_out()}"
    )


def _fold_name(number: int) -> str:
    return f"validation_{number}" if number else "validation"


def _fold(corpus: Corpus, number: int, folds: int) -> Iterator[str]:
    """Yields the validation documents of one fold, which a hash of the content decides."""
    for document in corpus.validation():
        digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if int.from_bytes(digest) % folds == number:
            yield document


def _encoded(documents: Iterator[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    while some := list(itertools.islice(documents, _ENCODE_DOCUMENTS)):
        yield from tokenizer.encode(some)


def _intact(target: Path, fields: dict, dtype: np.dtype) -> bool:
    """Returns whether `target` holds the rows of these fields, and deletes damaged rows."""
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
        _log.warning("cached rows %s are damaged (%s): building them again", target, damaged[0])
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
