"""The run folder of a search: its `config.json`, its lock and its fingerprints."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, NotRequired, TypedDict

from ml_collections import ConfigDict
from msgspec import Meta

from nanoevolve_jax.configs.base import SAME
from nanoevolve_jax.errors import apart, must
from nanoevolve_jax.evidence.calibration_file import FILE as CALIBRATION
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.json_files import read_json, write_json
from nanoevolve_jax.execution.machine import Facts, differences
from nanoevolve_jax.execution.plain_files import (
    FileError,
    open_in_place,
    open_plain,
    read_plain,
    require_own_files,
    subfolder,
    write_whole,
)
from nanoevolve_jax.execution.settings import corpus_here, get_setting, received

# Fields that may change between two runs in the same folder, because no record depends on them.
_FREE = (
    *("workdir", "data.cache_dir", "data.corpus", "search.generations", "calibration"),
    *("checkpoint_seconds", "engine", "ray", "threads"),
    *("plan", "step_seconds", "machines", "distributed", "compare", "track", "codegen"),
)
# Settings of stages other than the search. The id of a campaign does not depend on them.
_AFTERWARDS = ("confirm", "attribute", "transfer", "calibrate")
_DECIDING = ("corpus", "tokenizer", "calibration", "config")  # fingerprints that must not change
FORMAT = 3  # format of run folders; format 1 had no checkpoints, format 2 no seals in its archive
FILE = "config.json"
_LOCK = ".lock"
_OTHERS = ("wandb",)  # folders in which trackers may create links


class Description(TypedDict):
    """Contents of `config.json`."""

    format: NotRequired[Annotated[int, Meta(ge=1)]]  # format of the run folder; 1 if missing
    config: dict[str, Any]
    versions: NotRequired[dict[str, str]]
    device: NotRequired[dict[str, str | int]]
    fingerprints: NotRequired[dict[str, str]]


def read_description(folder: Path) -> Description:
    """Reads the `config.json` of a run folder.

    Args:
      folder: Run folder.

    Returns:
      Contents of the file.

    Raises:
      FileError: If its fields are invalid, or its format is newer than `FORMAT`.
      OSError: If it is missing or cannot be read.
    """
    document = read_json(folder / FILE, Description)
    if document.get("format", 1) > FORMAT:
        raise FileError(
            f"{folder / FILE} cannot be read: format must be at most {FORMAT}, got "
            f"{document['format']}"
        )
    return document


def is_older(description: Description) -> bool:
    """Returns whether a run folder has a format without seals in its archive and runs."""
    return description.get("format", 1) < FORMAT


def _without(document: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    document = json.loads(json.dumps(document))
    for path in paths:
        *groups, name = path.split(".")
        node = document
        for group in groups:
            node = node.get(group, {})
        node.pop(name, None)
    return document


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def describe_run(config: ConfigDict, facts: Facts, calibration: str) -> dict[str, Any]:
    """Returns the contents of `config.json` for a new run.

    The rounding of results depends on versions, on the number of lanes and devices, and on the
    visible cores. The fingerprint of the config therefore covers all of these. The fingerprint of
    the corpus covers its text.

    Args:
      config: Full configuration.
      facts: Facts about the data and the machine, on which the bits of a run depend.
      calibration: Seal of the calibration, or `UNCALIBRATED`.

    Returns:
      Config, versions, device and fingerprints.
    """
    resolved = config.to_dict()
    texts = [facts.corpus, facts.tokenizer, calibration]
    return {
        "format": FORMAT,
        "config": resolved,
        "versions": facts.versions,
        "device": facts.device,
        "fingerprints": {
            "corpus": facts.corpus,
            "tokenizer": facts.tokenizer,
            "calibration": calibration,
            "campaign": _digest([_without(resolved, _FREE + _AFTERWARDS), texts]),
            "config": _digest([_without(resolved, _FREE), facts.versions, facts.device]),
        },
    }


def require_own(folder: Path) -> None:
    """Checks that a run folder contains only regular files and folders.

    A link could lead to writes outside the run folder. The folders of trackers are not checked.

    Args:
      folder: Run folder.

    Raises:
      FileError: If it contains a link, or anything else that is not a regular file or a folder.
    """
    require_own_files(folder, _OTHERS)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Creates a run folder if necessary and locks it in this context.

    The system also releases the lock when the process ends.

    Args:
      folder: Run folder.

    Raises:
      ArchiveError: If another process has locked it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_own(folder)
        file = open_in_place(folder / _LOCK)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    with file:
        _lock(file, fcntl.LOCK_EX, folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield


def _lock(file: BinaryIO, kind: int, folder: Path) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read(200).decode(errors="replace") or "another process"
        raise ArchiveError(
            f"config.workdir={str(folder)!r} is in use by {holder}; choose another folder or wait "
            "until that process has ended"
        ) from None


def require_free(folder: Path) -> None:
    """Checks that a run folder is not locked before anything else is prepared.

    Args:
      folder: Run folder.

    Raises:
      ArchiveError: If another process has locked it.
      FileError: If it contains a link, or anything else that is not a regular file or a folder.
    """
    # `holding` reports all other problems of the folder.
    with contextlib.suppress(OSError):
        require_own(folder)
        with os.fdopen(open_plain(folder / _LOCK, os.O_RDONLY), "rb") as file:
            _lock(file, fcntl.LOCK_SH, folder)


def require_space(folder: Path, needed: int) -> None:
    """Checks that the disk of a run folder has enough free space.

    Args:
      folder: Run folder.
      needed: Required free space in bytes.

    Raises:
      ArchiveError: If there is less free space.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        there, least = apart(free / 1e9, needed / 1e9, 2, "f")
        raise ArchiveError(
            f"config.workdir must be on a disk with at least {least} GB free, got {str(folder)!r} "
            f"with {there} GB free"
        )


def config_of(document: Any, folder: Path, here: ConfigDict) -> ConfigDict:
    """Returns the config of a run folder, with the paths and devices of this machine.

    If the search was calibrated, `calibration` is the path of the copy in the run folder.

    Args:
      document: Field `config` of the folder's `config.json`.
      folder: Run folder.
      here: Config of this machine, see `received`.

    Raises:
      ConfigError: If the document is not a config, or a field is invalid.
    """
    config = received(document, here, str(folder / "config.json"))
    tuned = document.get("calibration", UNCALIBRATED) != UNCALIBRATED
    config.workdir = str(folder)
    config.calibration = str(folder / CALIBRATION) if tuned else UNCALIBRATED
    return config


def keep_calibration(folder: Path, calibration: Path) -> None:
    """Copies the calibration of a run into its folder, so that the folder is self-contained.

    Args:
      folder: Run folder.
      calibration: Path of the calibration.
    """
    kept, content = folder / CALIBRATION, read_plain(calibration)
    if not kept.exists() or read_plain(kept) != content:
        write_whole(kept, content)


def open_folder(folder: Path, description: dict[str, Any], *, keep: bool = False) -> None:
    """Writes the description of a new run, or checks that of an existing run.

    Args:
      folder: Run folder.
      description: Contents of `config.json`, see `describe_run`.
      keep: Whether to keep an existing `config.json`, which contains the paths and devices with
        which the run was started.

    Raises:
      ArchiveError: If the folder has a run with other fingerprints, or its `config.json` is
        damaged.
    """
    path = folder / FILE
    if os.path.lexists(path):
        _require_same(path, description)
        if keep:
            return
    elif (folder / "archive.jsonl").exists():
        raise ArchiveError(
            f"config.workdir must be a new folder or have a config.json, got {str(folder)!r} with "
            "an archive alone"
        )
    try:
        subfolder(folder, "telemetry")
        write_json(path, description)
    except OSError as error:
        raise _cannot_write(folder, error) from None


def _cannot_write(folder: Path, error: OSError) -> ArchiveError:
    message = must("config.workdir", "be a folder that can be written", str(folder))
    return ArchiveError(f"{message} ({error})")


def _require_same(path: Path, new: dict[str, Any]) -> None:
    """Checks that a `config.json` has the current format and the fingerprints of this run."""
    folder = str(path.parent)
    try:
        old = read_description(path.parent)
        old_format, prints = old.get("format", 1), new["fingerprints"]
        changed = [name for name in _DECIDING if old["fingerprints"].get(name) != prints[name]]
        details = [
            difference
            for part in ("config", "versions", "device")
            for difference in differences(_bound(old[part]), _bound(new[part]))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{path} is damaged ({error}); choose another workdir") from None
    if old_format != FORMAT:
        raise ArchiveError(
            f"config.workdir must be a new folder or a run folder of format {FORMAT}, got "
            f"{folder!r} of format {old_format}"
        )
    if changed:
        raise ArchiveError(
            f"config.workdir must be a new folder or a run with the same "
            f"{' and '.join(changed)}, got {folder!r}{': ' if details else ''}{'; '.join(details)}"
        )


def _bound(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that must not change between two runs in the same folder."""
    return _without(document, _FREE)


class Search(NamedTuple):
    """The config of a finished search, with the paths and devices of this machine."""

    config: ConfigDict  # config with the names of corpora that the search used
    here: ConfigDict  # config with the paths of these corpora on this machine
    calibration: str  # path of the calibration when the search was started, for display

    def named(self, config: ConfigDict) -> ConfigDict:
        """Returns a copy of a config with the names of corpora that the search used."""
        named = config.copy_and_resolve_references()
        named.data.corpus = self.config.data.corpus
        named.attribute.switch_corpus = self.config.attribute.switch_corpus
        return named


def read_search(settings: ConfigDict) -> Search:
    """Reads the config of a finished search.

    Fields that affect results come from the run folder, and all others come from `settings`.

    Args:
      settings: Fields of `configs.base.CONFIRM_SETTINGS`.

    Returns:
      The config, for the search and for this machine.

    Raises:
      ArchiveError: If the folder does not contain a run.
      EvidenceError: If its search had no calibration, or the calibration is missing.
      ConfigError: If its config is invalid, or a corpus is not found on this machine.
    """
    folder = Path(settings.workdir)
    try:
        description = read_description(folder)
    except (OSError, ValueError) as error:
        raise ArchiveError(
            f"{must('config.workdir', 'be the folder of a finished search', str(folder))} ({error})"
        ) from None
    document = description["config"]
    calibration = str(document.get("calibration", UNCALIBRATED))
    fingerprint = description.get("fingerprints", {}).get("corpus")
    config = config_of(document, folder, settings)
    if config.calibration == UNCALIBRATED:
        raise EvidenceError(
            f"config.workdir must be a search with a calibration, got {str(folder)!r} without one; "
            "run calibrate, then a search with --config.calibration"
        )
    if settings.calibration != SAME:
        config.calibration = settings.calibration
    elif not Path(config.calibration).is_file():
        raise EvidenceError(
            f"config.calibration must be the calibration.json of the search, because {folder} has "
            "no copy of it"
        )
    here = config.copy_and_resolve_references()
    texts = {"data.corpus": fingerprint}
    if settings.until != "confirm":  # only the stages after a win read the second corpus
        texts["attribute.switch_corpus"] = None
    for field, known in texts.items():
        named, given = get_setting(config, field), get_setting(settings, field)
        source = str(folder / "config.json")
        place = corpus_here(named, given, config.data.cache_dir, known, field, source)
        here.update_from_flattened_dict({field: place})
    return Search(config, here, calibration)
