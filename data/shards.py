"""Folders of parquet shards in NanoChat's layout: column `text`, last shard for validation.

Layout: https://github.com/karpathy/nanochat/blob/master/nanochat/dataset.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanoevolve_jax.data import CorpusError
from nanoevolve_jax.errors import must

COLUMN = "text"
_NOT_SHARDS = (".", "_")  # prefixes of hidden and temporary files
_READ_ERRORS = (OSError, ValueError, KeyError, pa.ArrowException)  # raised for damaged files
_MAX_NAMES = 8  # columns named in an error


def list_shards(folder: Path, shards: int = 0) -> tuple[list[Path], Path]:
    """Returns the training shards, at most `shards` of them if not 0, and the validation shard.

    Files whose names begin with a dot or an underscore are hidden or temporary and are skipped.
    Folders and dangling links are skipped too.

    Raises:
      CorpusError: if the folder is missing, or does not have two shards that can be read.
    """
    corpus = f"parquet:{folder}"
    if not folder.is_dir():
        rule = "be parquet:DIR with an existing folder of *.parquet files"
        raise CorpusError(must("config.data.corpus", rule, corpus))
    paths = sorted(
        path
        for path in folder.glob("*.parquet")
        if not path.name.startswith(_NOT_SHARDS) and path.is_file()
    )
    if len(paths) < 2:
        rule = "have at least 2 *.parquet files (names that begin with . or _ do not count)"
        have = paths[0].name if paths else "none"
        raise CorpusError(f"{must('config.data.corpus', rule, corpus)} with {have}")
    train = paths[:-1][: shards or None]
    for path in [*train, paths[-1]]:
        check_shard(path)
    return train, paths[-1]


def check_shard(path: Path) -> None:
    """Raises CorpusError unless the file's footer can be read and has one column of text."""
    columns = _columns(path)
    kinds = [kind for name, kind in columns if name == COLUMN]
    if not kinds:
        names = [repr(name) for name, _ in columns[:_MAX_NAMES]]
        names += ["..."] if len(columns) > _MAX_NAMES else []
        raise CorpusError(
            f"config.data.corpus: {path} must have a column '{COLUMN}', got {', '.join(names)}"
        )
    if len(kinds) > 1:
        raise CorpusError(
            f"config.data.corpus: {path} must have one column '{COLUMN}', got {len(kinds)}"
        )
    if not _is_text(kinds[0]):
        raise CorpusError(
            f"config.data.corpus: column '{COLUMN}' of {path} must be string, got {kinds[0]}"
        )


def read_documents(paths: Sequence[Path]) -> Iterator[str]:
    """Yields the documents of shards in order, with one row group in memory at a time.

    Empty and missing documents are skipped.

    Raises:
      CorpusError: if a file is damaged, or its text is not UTF-8.
    """
    for path in paths:
        check_shard(path)
        with _open(path) as file:
            for group in range(file.num_row_groups):
                yield from filter(None, _read_group(file, group, path))


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except _READ_ERRORS as error:
        raise CorpusError(
            f"config.data.corpus: {path} cannot be read as parquet ({error})"
        ) from error


def _columns(path: Path) -> list[tuple[str, pa.DataType]]:
    """Returns (name, type) of each column of a file; names may repeat."""
    with _open(path) as file:
        schema = file.schema_arrow
        return list(zip(schema.names, schema.types, strict=True))


def _read_group(file: pq.ParquetFile, group: int, path: Path) -> list[str | None]:
    try:
        column = file.read_row_group(group, columns=[COLUMN]).column(COLUMN)
        # Arrow checks that strings are UTF-8 only when they are converted to Python.
        return column.cast(pa.large_string()).to_pylist()
    except _READ_ERRORS as error:
        if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            raise CorpusError(
                f"config.data.corpus: column '{COLUMN}' of {path} must be UTF-8, which row group "
                f"{group} is not ({error})"
            ) from error
        raise CorpusError(f"config.data.corpus: {path} is damaged ({error})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # Some writers omit the text type, so binary columns with UTF-8 bytes are accepted.
    return any(
        check(kind)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )
