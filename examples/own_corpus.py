"""Searches on your own text files.

NanoChat stores text in a folder of parquet shards with one column, `text`. The last shard is for
validation. This example writes such a folder from text files and searches on it with a tiny model.
The command takes a minute on 2 busy cores:

  python examples/own_corpus.py README.md docs/*.md

Its output ends with the table of the search and the paths of the results. In `runs/own_corpus`, the
folder `corpus` holds the shards and the folder `search` holds the run. The same command continues
the search. Use another `--folder` for other text files. For a useful search, remove the tiny
settings and pass megabytes of text.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags

_FOLDER = flags.DEFINE_string("folder", "runs/own_corpus", "folder of the shards and the search")
_STEPS = flags.DEFINE_integer("steps", 20, "optimizer steps of each candidate", lower_bound=1)
_PIECE = 256  # largest number of characters, so that a piece is not cut off at the end of a row
_VALIDATION = 5  # every fifth piece is for validation
_TINY = {
    "data.vocab_size": 512,
    "data.folds": 3,
    "data.validation_rows": 8,
    "model.n_layer": 2,
    "model.n_embd": 32,
    "model.sequence_len": 64,
    "train.batch_size": 4,
    "train.segment_steps": 10,
    "search.generations": 1,
    "search.population": 4,
}


def write_corpus(files: list[Path], folder: Path) -> tuple[int, int]:
    """Writes a training shard and a validation shard.

    Args:
      files: Paths of the text files.
      folder: Folder of the shards.

    Returns:
      Tuple of the number of training pieces and the number of validation pieces.
    """
    pieces = [
        piece
        for file in files
        for paragraph in file.read_text(encoding="utf-8").split("\n\n")
        for piece in textwrap.wrap(
            paragraph,
            _PIECE,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    validation = pieces[::_VALIDATION]
    training = [piece for i, piece in enumerate(pieces) if i % _VALIDATION]
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("shard_00000", training), ("shard_00001", validation)):
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
    return len(training), len(validation)


def main(arguments: list[str]) -> int:
    """Writes the corpus, searches on it and returns the exit code of the search."""
    files = [Path(name) for name in arguments[1:]]
    if not files:
        raise app.UsageError("pass text files, such as README.md docs/*.md", exitcode=2)
    folder = Path(_FOLDER.value)
    training, validation = write_corpus(files, folder / "corpus")
    print(f"{training} pieces of text for training, {validation} for validation", flush=True)
    settings = _TINY | {
        "train.steps": _STEPS.value,
        "data.corpus": f"parquet:{folder / 'corpus'}",
        "workdir": folder / "search",
    }
    search = [sys.executable, "-m", "nanoevolve_jax", "search", "--config=configs/screen.py"]
    search += [f"--config.{field}={value}" for field, value in settings.items()]
    return subprocess.run(search).returncode


if __name__ == "__main__":
    app.run(main)
