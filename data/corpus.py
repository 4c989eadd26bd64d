"""Registry of corpora, each split into disjoint training and validation documents."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nanoevolve_jax.data import hub
from nanoevolve_jax.data.errors import CorpusError, Progress
from nanoevolve_jax.data.files import expanded, sha256_file
from nanoevolve_jax.data.shards import list_shards, read_documents
from nanoevolve_jax.data.stdlib import docstring_documents, stdlib_documents

from nanoevolve_jax.errors import must

__all__ = ["SOURCES", "Corpus", "CorpusError", "Progress", "load_corpus"]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Disjoint documents for training and validation.

    Attributes:
      name: Name from the configuration.
      fingerprint: Hexadecimal hash of the content; independent of the path.
      train: Returns a new iterator over the training documents, always in the same order.
      validation: Returns a new iterator over the validation documents.
      copies: Returns the number of training documents that are left out because they are exact
        copies of validation documents. It reads the whole corpus.
    """

    name: str
    fingerprint: str
    train: Callable[[], Iterator[str]]
    validation: Callable[[], Iterator[str]]
    copies: Callable[[], int]

    def check_text(self) -> None:
        """Checks that both parts have a document.

        Raises:
          CorpusError: If a part is empty.
        """
        if next(self.validation(), None) is None:
            raise CorpusError(
                f"config.data.corpus={self.name!r} must have validation text, got only empty "
                "documents"
            )
        if next(self.train(), None) is None:
            copies = self.copies()
            kinds = f"{copies} copies of validation" if copies else "empty"
            raise CorpusError(
                f"config.data.corpus={self.name!r} must have training text, got only {kinds} "
                "documents"
            )

    def left_out(self) -> str:
        """Returns a note on excluded training documents, for errors about too little text."""
        copies = self.copies()
        return f" (without {copies} copies of validation documents)" if copies else ""


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
    """Loads a corpus by name and downloads it if necessary.

    Args:
      name: `stdlib`, `docstrings`, `parquet:DIR`, `climbmix` or `fineweb_edu`.
      cache_dir: Folder for downloaded shards.
      shards: Maximum number of training shards. 0 means all shards of a folder, or one shard of a
        data set on the hub.
      document_chars: Maximum length of a document of `stdlib` or `docstrings`, in characters.
      progress: Callback for downloads.

    Raises:
      CorpusError: If the name is unknown or the corpus cannot be used.
    """
    key, colon, argument = name.partition(":")
    source = SOURCES.get(key)
    if source is None or bool(colon) != (key == "parquet") or (colon and not argument):
        raise CorpusError(
            must(
                "config.data.corpus",
                "be stdlib, docstrings, parquet:DIR, climbmix or fineweb_edu",
                name,
            )
        )
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
    """Returns a corpus without the training documents that are copies of validation documents."""

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
