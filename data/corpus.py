"""Corpora by name, each with disjoint documents for training and validation."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nanoevolve_jax.data import CorpusError, Progress, hub
from nanoevolve_jax.data.files import expanded, sha256_file
from nanoevolve_jax.data.shards import list_shards, read_documents
from nanoevolve_jax.data.stdlib import docstring_documents, stdlib_documents
from nanoevolve_jax.errors import must

__all__ = ["SOURCES", "Corpus", "CorpusError", "Progress", "load_corpus"]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents for training and validation; no document is in both.

    Attributes:
      name: Name given by the user.
      fingerprint: Hexadecimal hash of the content; it does not depend on the path.
      train: Returns a new iterator over the training documents, always in the same order.
      validation: Returns a new iterator over the validation documents, in the same way.
      copies: Reads all training documents and counts those that are left out because they are
        exact copies of validation documents.
    """

    name: str
    fingerprint: str
    train: Callable[[], Iterator[str]]
    validation: Callable[[], Iterator[str]]
    copies: Callable[[], int]

    def check_text(self) -> None:
        """Raises CorpusError unless both parts have a document."""
        if next(self.validation(), None) is None:
            rule = "have validation documents that are not empty"
            raise CorpusError(must("config.data.corpus", rule, self.name))
        if next(self.train(), None) is None:
            rule = "have training documents that are not empty"
            text = must("config.data.corpus", rule, self.name)
            raise CorpusError(f"{text}{self.copies_note()}")

    def copies_note(self) -> str:
        """Returns how many training documents are left out, for an error about too little text."""
        copies = self.copies()
        return f" ({copies} copies of validation documents are left out)" if copies else ""


@dataclasses.dataclass(frozen=True)
class _Request:
    name: str
    argument: str
    cache_dir: Path
    shards: int
    document_chars: int
    progress: Progress | None


def load_corpus(
    name: str,
    *,
    cache_dir: str | Path,
    shards: int = 0,
    document_chars: int = 512,
    progress: Progress | None = None,
) -> Corpus:
    """Returns a corpus by name, downloading it if necessary.

    Args:
      name: `stdlib`, `docstrings`, `parquet:DIR`, `climbmix` or `fineweb_edu`.
      cache_dir: Folder for downloaded shards.
      shards: Largest number of training shards. 0 means all shards of a folder, and one shard of
        a dataset on the hub, because those have thousands.
      document_chars: Length of the longest document of `stdlib` and `docstrings`, in characters.
      progress: Callback for downloads.

    Raises:
      CorpusError: if the name is unknown or the corpus is unusable.
    """
    key, colon, argument = name.partition(":")
    source = SOURCES.get(key)
    if source is None or bool(colon) != (key == "parquet") or (colon and not argument):
        rule = "be stdlib, docstrings, parquet:DIR, climbmix or fineweb_edu"
        raise CorpusError(must("config.data.corpus", rule, name))
    if shards < 0:
        raise CorpusError(must("config.data.shards", "be at least 0 (all)", shards))
    return source(_Request(name, argument, Path(cache_dir), shards, document_chars, progress))


_LIBRARY = {"stdlib": stdlib_documents, "docstrings": docstring_documents}


def _library(request: _Request) -> Corpus:
    train, validation = _LIBRARY[request.name](document_chars=request.document_chars)
    digest = hashlib.sha256()
    for part in (train, validation):
        digest.update(b"%d\n" % len(part))
        for document in part:
            content = document.encode()
            digest.update(b"%d\n" % len(content) + content)
    return _disjoint(request.name, digest, lambda: train, lambda: validation)


def _parquet(request: _Request) -> Corpus:
    train, validation = list_shards(expanded(request.argument), request.shards)
    return _from_shards(request.name, train, validation)


def _hub(request: _Request) -> Corpus:
    train, validation = hub.fetch_shards(
        hub.DATASETS[request.name],
        request.cache_dir / "hub" / request.name,
        shards=request.shards or 1,
        progress=request.progress,
    )
    return _from_shards(request.name, train, validation)


SOURCES: dict[str, Callable[[_Request], Corpus]] = {
    "stdlib": _library,
    "docstrings": _library,
    "parquet": _parquet,
    "climbmix": _hub,
    "fineweb_edu": _hub,
}


def _from_shards(name: str, train: list[Path], validation: Path) -> Corpus:
    digest = hashlib.sha256()
    for path in [*train, validation]:
        digest.update(f"{path.name} {path.stat().st_size} {sha256_file(path)}\n".encode())
    return _disjoint(
        name, digest, lambda: read_documents(train), lambda: read_documents([validation])
    )


def _disjoint(
    name: str,
    digest: "hashlib._Hash",
    train: Callable[[], Iterable[str]],
    validation: Callable[[], Iterable[str]],
) -> Corpus:
    """Returns a corpus without training documents that are copies of validation documents."""

    @functools.cache
    def held_out() -> frozenset[bytes]:
        return frozenset(map(_digest, validation()))

    def kept() -> Iterator[str]:
        return (document for document in train() if _digest(document) not in held_out())

    def copies() -> int:
        return sum(_digest(document) in held_out() for document in train())

    return Corpus(name, digest.hexdigest()[:16], kept, lambda: iter(validation()), copies)


def _digest(document: str) -> bytes:
    return hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=16).digest()
