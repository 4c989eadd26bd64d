"""Folder of a job, with everything that another machine needs to train a candidate.

```
job.json                     runs of the candidate and of its baseline, config, hash of every file
code/<certificate id>/       rewritten functions, if the candidate has any
text/*.parquet               corpus, if it is a folder of Parquet files
nanoevolve_jax/              sources of this program, because results depend on them
```

The content depends only on the runs, the corpus, the config and the program. The hash of `job.json`
is the id of the job, so a candidate that is sent twice is trained once. The folder contains neither
paths nor environment variables of the sending machine.
"""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import SETTINGS, get_config
from nanoevolve_jax.data import CorpusError
from nanoevolve_jax.data.corpus import SOURCES
from nanoevolve_jax.data.files import building, expanded
from nanoevolve_jax.data.shards import list_shards
from nanoevolve_jax.errors import must
from nanoevolve_jax.evolution.library import FOLDER as CODE
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.execution.intact import (
    FORMAT,
    JOB,
    FolderError,
    digests,
    job_id,
    read_intact,
)
from nanoevolve_jax.execution.job import Job, JobDocument, job_from_json, job_to_json
from nanoevolve_jax.execution.json_files import to_text, typed
from nanoevolve_jax.execution.machine import source_files, visible_cores
from nanoevolve_jax.execution.settings import ConfigError, check_fields, get_setting, received

TEXT_BYTES = 64 * 2**20  # largest corpus that is sent; Ray accepts packages of up to 100 MiB
_TEXT = "text"
_CORPORA = (f"parquet:{_TEXT}", *(name for name in SOURCES if name != "parquet"))
# Groups and fields of the config that training depends on.
_TRAINING = ("data", "model", "train", "recipe", "seed", "data_parallel", "lanes")
_RESOURCES = ("devices", "threads", "ray.gpus")  # fields about the machine that a job may set


class Submission(NamedTuple):
    """Training runs that a folder describes."""

    config: ConfigDict  # config that `portable` returned
    arms: dict[str, list[Job]]  # runs of "candidate" and, optionally, of "baseline"
    text: dict[str, str] | None  # expected fingerprints of corpus and tokenizer, if known


class _Document(TypedDict):
    arms: dict[str, list[JobDocument]]
    text: dict[str, str] | None
    config: dict[str, Any]


def portable(config: ConfigDict) -> ConfigDict:
    """Returns a config that contains only the fields that training depends on.

    All other fields have their default values. The number of threads is fixed, because results
    depend on it.

    Args:
      config: Full configuration.
    """
    settled = get_config()
    for path in SETTINGS:
        if path.partition(".")[0] in _TRAINING or path in _RESOURCES:
            settled.update_from_flattened_dict({path: get_setting(config, path)})
    settled.threads = config.threads or visible_cores()  # results depend on the number
    settled.data.cache_dir = SETTINGS["data.cache_dir"].default
    if config.data.corpus.startswith("parquet:"):
        settled.data.corpus = f"parquet:{_TEXT}"
    return settled


def make_folder(submission: Submission, parent: Path, corpus: str) -> Path:
    """Writes the folder of a submission atomically, unless it exists, and returns its path.

    Args:
      submission: Training runs and their config.
      parent: Directory in which the folder is created. The name of the folder is the job's id.
      corpus: Corpus of the original config. Its text is included if it is a folder of Parquet
        files.

    Raises:
      CorpusError: If the corpus cannot be read or is too large to be sent.
      FolderError: If a folder with the same name exists and is damaged.
    """
    jobs = {arm: [job_to_json(job) for job in runs] for arm, runs in submission.arms.items()}
    codes = {job.candidate.code for runs in submission.arms.values() for job in runs} - {None}
    with building(parent, "job") as scratch:
        folder = scratch / "folder"
        for name, path in (source_files() | _shards(corpus, submission.config)).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        for function in (function for code in codes for function in code.functions):
            Library(folder / CODE).put(function)
        document = {"format": FORMAT, "arms": jobs, "text": submission.text}
        document |= {"config": submission.config.to_dict(), "files": digests(folder)}
        content = to_text(document).encode()
        (folder / JOB).write_bytes(content)
        target = parent / job_id(content)
        if not target.exists():
            os.rename(folder, target)
    read_folder(target, target.name)
    return target


def read_folder(folder: Path, job: str) -> Submission:
    """Returns the submission of a folder after checking that the folder is intact.

    Args:
      folder: Folder of the job.
      job: Id of the job.

    Raises:
      FolderError: If a file is missing, changed or unknown, or if `job.json` is malformed.
      ConfigError: If the config is invalid or names a corpus outside the folder.
    """
    document, find = read_intact(folder, job), Library(folder / CODE).get
    try:
        arms = {
            arm: [job_from_json(run, find) for run in runs]
            for arm, runs in typed(document, _Document)["arms"].items()
        }
        if not all(arms.values()) or not {"candidate"} <= set(arms) <= {"candidate", "baseline"}:
            raise ValueError("arms must be those of a candidate, with or without its baseline")
    except (ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{JOB} of job {job} cannot be used: {error}") from None
    return Submission(_received(document["config"]), arms, document["text"])


def _received(document: dict[str, Any]) -> ConfigDict:
    """Returns the config of a job with its resources and corpus, and with default paths."""
    wanted, sent = get_config(), ConfigDict(document)
    for path in _RESOURCES:
        wanted.update_from_flattened_dict({path: get_setting(sent, path)})
    check_fields(wanted)
    config = received(document, wanted, JOB)
    if config.data.corpus not in _CORPORA:
        rule = f"be {' or '.join(_CORPORA)}"
        raise ConfigError(must(f"config.data.corpus of {JOB}", rule, config.data.corpus))
    return config


def _shards(corpus: str, config: ConfigDict) -> dict[str, Path]:
    """Returns the files of a Parquet corpus by their path in the job's folder; else none."""
    kind, _, place = corpus.partition(":")
    if kind != "parquet":
        return {}
    train, validation = list_shards(expanded(place), config.data.shards)
    size = sum(path.stat().st_size for path in [*train, validation])
    if size > TEXT_BYTES:
        rule = f"have at most {TEXT_BYTES:,} bytes to travel with a job; try fewer data.shards"
        raise CorpusError(must("the text of config.data.corpus", rule, size))
    return {f"{_TEXT}/{path.name}": path for path in [*train, validation]}
