"""Folders of parquet shards in NanoChat's layout: a column `text`, validation in the last shard.

Layout: https://github.com/karpathy/nanochat/blob/master/nanochat/dataset.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from nanoevolve_jax.data.errors import CorpusError

from nanoevolve_jax.errors import must

COLUMN = "text"
_NOT_SHARDS = (".", "_")  # prefixes of hidden and temporary files
_READ_ERRORS = (OSError, ValueError, KeyError, pa.ArrowException)  # raised for damaged files
_NAMED = 8  # maximum number of columns in an error


def list_shards(folder: Path, shards: int = 0) -> tuple[list[Path], Path]:
    """Returns the training shards and the validation shard of a folder.

    Files whose names begin with a dot or an underscore, folders and broken links are ignored.

    Args:
      folder: Folder of `*.parquet` files.
      shards: Maximum number of training shards; 0 means all.

    Raises:
      CorpusError: If the folder is missing or has fewer than two readable shards.
    """
    corpus = f"parquet:{folder}"
    if not folder.is_dir():
        raise CorpusError(must("config.data.corpus", "name a folder of *.parquet files", corpus))
    paths = sorted(
        path
        for path in folder.glob("*.parquet")
        if not path.name.startswith(_NOT_SHARDS) and path.is_file()
    )
    if not paths:
        raise CorpusError(
            f"config.data.corpus={corpus!r} must hold *.parquet files whose names do not begin "
            "with . or _, got none"
        )
    if len(paths) < 2:
        raise CorpusError(
            f"config.data.corpus={corpus!r} must hold at least 2 shards because the last one is "
            f"for validation, got only {paths[0].name}"
        )
    train = paths[:-1][: shards or None]
    for path in [*train, paths[-1]]:
        check_shard(path)
    return train, paths[-1]


def check_shard(path: Path) -> None:
    """Checks the schema of a shard.

    Raises:
      CorpusError: If the footer cannot be read or there is not exactly one column of text.
    """
    columns = _columns(path)
    kinds = [kind for name, kind in columns if name == COLUMN]
    if not kinds:
        names = [repr(name) for name, _ in columns[:_NAMED]]
        names += ["..."] if len(columns) > _NAMED else []
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
      CorpusError: If a file is damaged or its text is not UTF-8.
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
    """Returns the names and types of a file's columns; names may repeat."""
    with _open(path) as file:
        schema = file.schema_arrow
        return list(zip(schema.names, schema.types, strict=True))


def _read_group(file: pq.ParquetFile, group: int, path: Path) -> list[str | None]:
    try:
        column = file.read_row_group(group, columns=[COLUMN]).column(COLUMN)
        # Arrow checks UTF-8 only when it converts strings to Python.
        return column.cast(pa.large_string()).to_pylist()
    except _READ_ERRORS as error:
        if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            raise CorpusError(
                f"config.data.corpus: column '{COLUMN}' of {path}, row group {group}, "
                f"must be UTF-8 ({error})"
            ) from error
        raise CorpusError(f"config.data.corpus: {path} is damaged ({error})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # Some writers store text as binary columns.
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
