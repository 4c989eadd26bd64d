"""Shards of Hugging Face datasets: downloaded with progress, resumed, and verified.

Repositories and the number of shards are NanoChat's, which validates on the last shard:
https://github.com/karpathy/nanochat/blob/master/nanochat/dataset.py

huggingface_hub finds the file and says its size and SHA-256. Its own `hf_hub_download` is not
used for the bytes: since version 2 it deletes the partial file of a failed download (each
download has its own temporary name), so a killed one of several gigabytes would start again.
"""

import dataclasses
import json
import os
import re
import time
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from nanoevolve_jax.data.errors import CorpusError, Progress
from nanoevolve_jax.data.files import locked, sha256_file, write_atomically

_TIMEOUT_SECONDS = 30
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset on the hub: shards 0 to `last`, of which the last is for validation."""

    repo: str
    last: int

    def shard(self, index: int) -> str:
        """Returns the file name of a shard."""
        return f"shard_{index:05d}.parquet"


DATASETS = {
    "climbmix": Dataset("karpathy/climbmix-400b-shuffle", 6542),
    "fineweb_edu": Dataset("karpathy/fineweb-edu-100b-shuffle", 1822),
}


def fetch_shards(
    dataset: Dataset,
    folder: Path,
    *,
    shards: int,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> tuple[list[Path], Path]:
    """Makes sure that shards are on disk, and touches the network only for those missing.

    Args:
      dataset: what to fetch from.
      folder: where the shards are kept.
      shards: number of training shards, the first ones of the dataset.
      endpoint: address of the hub; else HF_ENDPOINT, else huggingface.co.
      progress: called with a shard's bytes so far and in all.

    Returns:
      (training shards, validation shard).

    Raises:
      CorpusError: when there are not that many shards, or one cannot be had.
    """
    if not 1 <= shards <= dataset.last:
        raise CorpusError(
            f"data.shards: {shards} is not among the 1 to {dataset.last} training shards "
            f"of {dataset.repo}"
        )
    indices = [*range(shards), dataset.last]
    *train, validation = (
        fetch(dataset.repo, dataset.shard(index), folder, endpoint=endpoint, progress=progress)
        for index in indices
    )
    return train, validation


def fetch(
    repo: str,
    name: str,
    folder: Path,
    *,
    endpoint: str | None = None,
    progress: Progress | None = None,
    attempts: int = 5,
    backoff_seconds: float = 1.0,
) -> Path:
    """Downloads one file of a dataset unless it is there, whole, already.

    A fault is waited out, twice as long each time, and the download goes on where it stopped;
    only faults in a row without a new byte count as attempts.

    Returns:
      The path of the verified file in `folder`.

    Raises:
      CorpusError: when the hub has no such file, cannot be reached, or sends other bytes than
        it announced.
    """
    path = folder / name
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(repo, name, repo_type="dataset", endpoint=endpoint)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{name}.lock"):
        if _verified(path):
            return path
        failed, corrupted = 0, False
        while True:
            try:
                before = _partial_bytes(folder, name)
                _attempt(url, path, progress)
                return path
            except CorpusError:
                raise
            # Whatever the HTTP library raises is a fault: its exception types are those of
            # httpx under huggingface_hub 1 and of httpx2 under 2.
            except Exception as fault:
                grew = _partial_bytes(folder, name) > before
                corrupted |= isinstance(fault, _OtherBytesError)
                failed = 1 if grew and not corrupted else failed + 1
                if failed >= attempts or not _may_pass(fault):
                    raise CorpusError(
                        f"data.corpus: {url} cannot be downloaded "
                        f"({type(fault).__name__}: {fault}); a partial download is kept and "
                        "resumed next time"
                    ) from fault
                time.sleep(backoff_seconds * 2 ** (failed - 1))


class _OtherBytesError(Exception):
    """The bytes that came are not those that were announced."""


def _attempt(url: str, path: Path, progress: Progress | None) -> None:
    """Downloads what is missing of a file, verifies it, and moves it into place."""
    # Never with a token: the datasets are public, and the endpoint may be anyone's.
    announced = get_hf_file_metadata(url, token=False, timeout=_TIMEOUT_SECONDS)
    sha256 = announced.etag or ""
    if not _SHA256.fullmatch(sha256):  # the etag of every large file on the hub is one
        raise CorpusError(f"data.corpus: {url} announces no SHA-256 to verify it by ({sha256!r})")
    # The name holds the version, so that the parts of two versions are never joined.
    part = path.with_name(f".{path.name}.{sha256[:16]}.part")
    _stream(url, part, announced.size, f"downloading {path.name}", progress)

    size, found = part.stat().st_size, sha256_file(part)
    if found != sha256:
        part.unlink()
        raise _OtherBytesError(
            f"got {size} bytes with SHA-256 {found}, announced were {announced.size} with {sha256}"
        )
    os.replace(part, path)
    for outdated in path.parent.glob(f".{path.name}.*.part"):
        outdated.unlink()
    record = {"bytes": size, "sha256": sha256, "commit": announced.commit_hash}
    write_atomically(_record(path), json.dumps(record).encode())


def _stream(url: str, part: Path, size: int | None, what: str, progress: Progress | None) -> None:
    # Neither side gathers bytes first, so that all that came before a fault is kept.
    with open(part, "ab", buffering=0) as file:
        done = file.tell()
        if size is not None and done >= size:
            return
        headers = {"Accept-Encoding": "identity"}  # compressed, byte ranges would not fit
        if done:
            headers["Range"] = f"bytes={done}-"
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_SECONDS
        ) as response:
            response.raise_for_status()
            if done and response.status_code != 206:  # the server sends all of it again
                file.truncate(0)
                done = 0
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(what, done, size or 0)


def _may_pass(fault: Exception) -> bool:
    """Tells whether trying again may help: not when the hub answers that there is no file."""
    status = getattr(getattr(fault, "response", None), "status_code", None)
    if isinstance(fault, HfHubHTTPError) and status is not None:
        return status in (408, 429) or status >= 500
    return True


def _partial_bytes(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f".{name}.*.part"))


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _verified(path: Path) -> bool:
    """Tells whether a file is the one that was downloaded and verified."""
    try:
        record = json.loads(_record(path).read_text())
        return path.stat().st_size == record["bytes"] and sha256_file(path) == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
