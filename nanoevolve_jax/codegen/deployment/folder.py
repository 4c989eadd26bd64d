"""The self-contained folder of a candidate: all that another machine needs to train it.

```
job.json                     what is trained, and the SHA-256 of every other file
code/<certificate id>/       rewritten functions, if the candidate has any
text/*.parquet               the corpus, where that is a folder of the user's own
nanoevolve_jax/ model/ data/ configs/    this program
```

The program travels along because results depend on its sources, and so that a cluster needs only
the libraries. The bytes depend on the candidate, its config and the program alone, so the hash of
`job.json` names the job: the same candidate is the same job wherever it is sent from. Nothing in it
is a path of this machine, or comes from its environment.
"""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nanoevolve_jax.codegen.deployment.intact import (
    FORMAT,
    JOB,
    FolderError,
    digests,
    job_id,
    read_intact,
)
from nanoevolve_jax.configs.base import SETTINGS, get_config
from nanoevolve_jax.data.corpus import SOURCES
from nanoevolve_jax.data.errors import CorpusError
from nanoevolve_jax.data.files import building, expanded
from nanoevolve_jax.data.shards import list_shards
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evolution.library import FOLDER as CODE
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.execution.json_files import to_text
from nanoevolve_jax.execution.numbers import apart
from nanoevolve_jax.execution.received import received
from nanoevolve_jax.execution.settings import ConfigError, check_fields, get_setting
from nanoevolve_jax.execution.sources import source_files
from nanoevolve_jax.execution.threads import visible_cores
from nanoevolve_jax.policy.certified import CertificateError, code_to_json
from nanoevolve_jax.policy.spec_json import spec_from_json, spec_to_json

ARMS = ("candidate", "baseline")
TEXT_BYTES = 64 * 2**20  # of a corpus that travels along; Ray takes packages of 100 MiB
_TEXT = "text"
_NAMED = tuple(name for name in SOURCES if name != "parquet")  # texts without a place
# What a training run depends on; everything else has its default in a folder.
_TRAINING = ("seed", "devices", "data_parallel", "lanes", "ray.gpus")
# Fields of a machine that a job may set: the resources that it was submitted to take.
_RESOURCES = ("devices", "threads", "ray.gpus")
_TRAINING_GROUPS = ("data", "model", "train", "recipe")


class Order(NamedTuple):
    """What a job trains: its arms on the same seeds, text and horizon."""

    config: ConfigDict  # as `portable` makes it
    candidate: Arm
    baseline: Arm | None  # None: the candidate alone
    seeds: tuple[int, ...]
    fold: int  # of the validation text
    steps: int  # horizon
    text: dict[str, str] | None  # fingerprints that `corpus` and `tokenizer` must have, if known

    @property
    def arms(self) -> dict[str, Arm]:
        """Those that there are, by name."""
        return {name: arm for name in ARMS if (arm := getattr(self, name)) is not None}


def portable(config: ConfigDict) -> ConfigDict:
    """The config as far as training depends on it; threads are settled, for bits depend on them.

    Args:
      config: whole; its recipe is the calibrated one.
    """
    settled = get_config()
    for path in SETTINGS:
        if path in _TRAINING or path.partition(".")[0] in _TRAINING_GROUPS:
            settled.update_from_flattened_dict({path: get_setting(config, path)})
    settled.threads = config.threads or visible_cores()
    settled.data.cache_dir = SETTINGS["data.cache_dir"].default
    if _own_text(config):
        settled.data.corpus = f"parquet:{_TEXT}"
    return settled


def make_folder(order: Order, parent: Path, corpus: str) -> Path:
    """Makes the folder of an order, whole or not at all; gives it if it is there already.

    Args:
      order: what is to be trained.
      parent: of the folder, whose name is the job's id.
      corpus: the config's own, whose text travels along if it is a folder.

    Raises:
      FolderError: if the text is too large to travel.
      CorpusError: if the corpus cannot be read.
    """
    with building(parent, "job") as scratch:
        made = scratch / "folder"
        _copy(source_files(), made)
        _copy(_text(corpus, order.config.data.shards), made)
        for arm in order.arms.values():
            for function in arm.code.functions if arm.code else ():
                Library(made / CODE).put(function)
        content = to_text(_document(order, digests(made))).encode()
        (made / JOB).write_bytes(content)
        folder = parent / job_id(content)
        if not folder.exists():
            os.rename(made, folder)
    read_folder(folder, folder.name)
    return folder


def read_folder(folder: Path, job: str) -> Order:
    """The order of a folder, once that is found intact.

    Args:
      folder: on any machine.
      job: the id that it was submitted under.

    Raises:
      FolderError: if a file is missing, changed or too many, or `job.json` is no order.
    """
    document = read_intact(folder, job)
    try:
        return _order(document, folder)
    except (CertificateError, KeyError, TypeError) as error:
        raise FolderError(f"{JOB} of job {job} is no order: {error}") from None


def _document(order: Order, files: dict[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "arms": {name: _arm_to_json(arm) for name, arm in order.arms.items()},
        "seeds": list(order.seeds),
        "fold": order.fold,
        "steps": order.steps,
        "text": order.text,
        "config": order.config.to_dict(),
        "files": files,
    }


def _order(document: dict[str, Any], folder: Path) -> Order:
    config = _config(document["config"])
    arms = {name: _arm_from_json(name, arm, folder) for name, arm in document["arms"].items()}
    return Order(
        config=config,
        **{"baseline": None} | arms,
        seeds=tuple(document["seeds"]),
        fold=document["fold"],
        steps=document["steps"],
        text=document["text"],
    )


def _config(document: Any) -> ConfigDict:
    """The config of a job: its resources are as it was submitted, its places are not its own.

    Raises:
      ConfigError: if a field is invalid, or the text is a folder outside the job's.
    """
    here = ConfigDict(document) if isinstance(document, dict) else ConfigDict()
    wanted = get_config()
    for path in _RESOURCES:
        wanted.update_from_flattened_dict({path: get_setting(here, path)})
    check_fields(wanted)
    config = received(document, wanted, JOB)
    if config.data.corpus not in (f"parquet:{_TEXT}", *_NAMED):
        raise ConfigError(
            f"config.data.corpus of {JOB} must be parquet:{_TEXT} or one of {', '.join(_NAMED)}, "
            f"got {config.data.corpus!r:.80}"
        )
    return config


def _arm_to_json(arm: Arm) -> dict[str, Any]:
    return {
        "spec": spec_to_json(arm.spec),
        "recipe": arm.recipe,
        "lr_factor": arm.lr_factor,
        "code": code_to_json(arm.code) if arm.code else None,
    }


def _arm_from_json(name: str, document: dict[str, Any], folder: Path) -> Arm:
    code = Library(folder / CODE).code(document["code"])
    spec = spec_from_json(document["spec"])
    return Arm(name, spec, document["recipe"], document["lr_factor"], code)


def _own_text(config: ConfigDict) -> bool:
    return config.data.corpus.startswith("parquet:")


def _text(corpus: str, shards: int) -> dict[str, Path]:
    """The shards that are used of the user's own corpus; nothing of one that has a name."""
    kind, colon, place = corpus.partition(":")
    if not colon or kind != "parquet":
        return {}
    train, validation = list_shards(expanded(place), shards)
    paths = [*train, validation]
    size = sum(path.stat().st_size for path in paths)
    if size > TEXT_BYTES:
        given, most = apart(size / 2**20, TEXT_BYTES / 2**20, 0, "f")
        raise CorpusError(
            f"config.data.corpus is {corpus!r}, {given} MiB; allowed: at most {most} MiB that "
            "travel with a candidate, fewer config.data.shards, "
            "or a corpus that has a name"
        )
    return {f"{_TEXT}/{path.name}": path for path in paths}


def _copy(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
