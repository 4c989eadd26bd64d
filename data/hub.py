"""Downloads of shards from Hugging Face, with progress, resumption and verification.

The repositories and numbers of shards are those of NanoChat, which validates on the last shard:
https://github.com/karpathy/nanochat/blob/master/nanochat/dataset.py

huggingface_hub locates the file and returns its size and SHA-256. `hf_hub_download` is not used for
the bytes, because since version 2 it deletes the partial file of a failed download, and a download
of several gigabytes would start again.
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

from nanoevolve_jax.errors import must

_TIMEOUT_SECONDS = 30
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set on the hub with shards 0 to `last`; the last is for validation."""

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
    """Downloads the shards that are not on disk yet.

    Args:
      dataset: Data set to download from.
      folder: Folder of the shards.
      shards: Number of training shards, taken from the start of the data set.
      endpoint: Address of the hub; by default HF_ENDPOINT, else huggingface.co.
      progress: Callback that takes the bytes downloaded so far and the size of the shard.

    Returns:
      Paths of the training shards, and path of the validation shard.

    Raises:
      CorpusError: If there are fewer shards, or a download fails.
    """
    if not 1 <= shards <= dataset.last:
        raise CorpusError(
            must("config.data.shards", f"be 1 to {dataset.last} for {dataset.repo}", shards)
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
    """Downloads one file of a data set unless a verified copy is on disk.

    After a fault the download waits, twice as long each time, and continues where it stopped.
    Only consecutive faults without a new byte count as attempts.

    Args:
      repo: Repository of the data set.
      name: Name of the file.
      folder: Folder to download to.
      endpoint: Address of the hub; by default HF_ENDPOINT, else huggingface.co.
      progress: Callback that takes the bytes downloaded so far and the size of the file.
      attempts: Number of consecutive faults after which the download fails.
      backoff_seconds: Wait after the first fault.

    Returns:
      Path of the verified file in `folder`.

    Raises:
      CorpusError: If the hub has no such file, cannot be reached, or sends bytes that do not match
        the SHA-256 it announced.
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
            # Every error of the HTTP library is a fault. Its types are those of httpx under
            # huggingface_hub 1 and of httpx2 under 2.
            except Exception as fault:
                grew = _partial_bytes(folder, name) > before
                corrupted |= isinstance(fault, _OtherBytesError)
                failed = 1 if grew and not corrupted else failed + 1
                if failed >= attempts or not _may_pass(fault):
                    raise CorpusError(
                        f"config.data.corpus: {url} cannot be downloaded "
                        f"({type(fault).__name__}: {fault}); the next attempt resumes the partial "
                        "download"
                    ) from fault
                time.sleep(backoff_seconds * 2 ** (failed - 1))


class _OtherBytesError(Exception):
    """Downloaded bytes do not match the announced SHA-256."""


def _attempt(url: str, path: Path, progress: Progress | None) -> None:
    """Downloads the rest of a file, verifies it and moves it into place."""
    # Never send a token: the data sets are public and the endpoint may belong to anyone.
    announced = get_hf_file_metadata(url, token=False, timeout=_TIMEOUT_SECONDS)
    sha256 = announced.etag or ""
    if not _SHA256.fullmatch(sha256):  # the etag of every large file on the hub is one
        raise CorpusError(must(f"config.data.corpus: the etag of {url}", "be a SHA-256", sha256))
    # The name contains the version, so parts of two versions are never joined.
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
    # Unbuffered, so that all bytes received before a fault are kept.
    with open(part, "ab", buffering=0) as file:
        done = file.tell()
        if size is not None and done >= size:
            return
        headers = {"Accept-Encoding": "identity"}  # Byte ranges refer to uncompressed content.
        if done:
            headers["Range"] = f"bytes={done}-"
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_SECONDS
        ) as response:
            response.raise_for_status()
            if done and response.status_code != 206:  # The server starts from the beginning.
                file.truncate(0)
                done = 0
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(what, done, size or 0)


def _may_pass(fault: Exception) -> bool:
    """Returns whether another attempt may succeed."""
    status = getattr(getattr(fault, "response", None), "status_code", None)
    if isinstance(fault, HfHubHTTPError) and status is not None:
        return status in (408, 429) or status >= 500
    return True


def _partial_bytes(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f".{name}.*.part"))


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _verified(path: Path) -> bool:
    """Returns whether a file is unchanged since its download was verified."""
    try:
        record = json.loads(_record(path).read_text())
        return path.stat().st_size == record["bytes"] and sha256_file(path) == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
