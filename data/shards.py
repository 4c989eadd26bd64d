"""Folders of parquet shards in NanoChat's layout: a column `text`, the last shard for validation.

Layout: https://github.com/karpathy/nanochat/blob/master/nanochat/dataset.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from nanoevolve_jax.data.errors import CorpusError

COLUMN = "text"
_NOT_SHARDS = (".", "_")  # how names of hidden and temporary files begin
_READ_ERRORS = (OSError, ValueError, KeyError, pa.ArrowException)  # of damaged files
_NAMED = 8  # columns that an error names at most


def list_shards(folder: Path, shards: int = 0) -> tuple[list[Path], Path]:
    """Returns the training shards, at most `shards` of them if not 0, and the validation shard.

    Hidden and temporary files, whose names begin with a dot or an underscore, are not shards, and
    neither are folders or links that lead nowhere.

    Raises:
      CorpusError: when the folder is missing, or does not hold two shards that can be read.
    """
    where = f"data.corpus: 'parquet:{folder}'"
    if not folder.is_dir():
        raise CorpusError(f"{where} is not a folder; give a folder of *.parquet files")
    paths = sorted(
        path
        for path in folder.glob("*.parquet")
        if not path.name.startswith(_NOT_SHARDS) and path.is_file()
    )
    if not paths:
        raise CorpusError(
            f"{where} holds no *.parquet file; names that begin with . or _ do not count"
        )
    if len(paths) < 2:
        raise CorpusError(
            f"{where} holds one shard, {paths[0].name}; at least 2 are needed, "
            "because the last one is for validation"
        )
    train = paths[:-1][: shards or None]
    for path in [*train, paths[-1]]:
        check_shard(path)
    return train, paths[-1]


def check_shard(path: Path) -> None:
    """Raises CorpusError unless the file's footer can be read and promises a column of text."""
    columns = _columns(path)
    kinds = [kind for name, kind in columns if name == COLUMN]
    if not kinds:
        names = [repr(name) for name, _ in columns[:_NAMED]]
        names += ["..."] if len(columns) > _NAMED else []
        raise CorpusError(
            f"data.corpus: {path} must have a column '{COLUMN}', got {', '.join(names)}"
        )
    if len(kinds) > 1:
        raise CorpusError(f"data.corpus: {path} must have one column '{COLUMN}', got {len(kinds)}")
    if not _is_text(kinds[0]):
        raise CorpusError(
            f"data.corpus: column '{COLUMN}' of {path} must be string, got {kinds[0]}"
        )


def read_documents(paths: Sequence[Path]) -> Iterator[str]:
    """Yields the documents of shards in their order, one row group in memory at a time.

    Empty and missing documents are skipped.

    Raises:
      CorpusError: when a file is damaged, or its text is not UTF-8.
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
        raise CorpusError(f"data.corpus: {path} cannot be read as parquet ({error})") from error


def _columns(path: Path) -> list[tuple[str, pa.DataType]]:
    """Returns names and types of a file's columns; several may have the same name."""
    with _open(path) as file:
        schema = file.schema_arrow
        return list(zip(schema.names, schema.types, strict=True))


def _read_group(file: pq.ParquetFile, group: int, path: Path) -> list[str | None]:
    try:
        column = file.read_row_group(group, columns=[COLUMN]).column(COLUMN)
        # Arrow does not check that strings are UTF-8 until they become Python's.
        return column.cast(pa.large_string()).to_pylist()
    except _READ_ERRORS as error:
        if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            raise CorpusError(
                f"data.corpus: column '{COLUMN}' of {path}, row group {group}, "
                f"holds bytes that are not UTF-8 ({error})"
            ) from error
        raise CorpusError(f"data.corpus: {path} is damaged ({error})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # Binary columns are read as text too, if their bytes are UTF-8: some writers omit the type.
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
