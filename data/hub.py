"""Downloads shards of Hugging Face datasets, with progress, resumption and verification.

Repositories and numbers of shards are NanoChat's, which validates on the last shard:
https://github.com/karpathy/nanochat/blob/master/nanochat/dataset.py

huggingface_hub provides address, size and SHA-256 of a file. Its `hf_hub_download` is not used
for the content, because since version 2 it deletes the partial file of a failed download, so a
download of several gigabytes would start again.
"""

import dataclasses
import json
import os
import re
import time
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from nanoevolve_jax.data import CorpusError, Progress
from nanoevolve_jax.data.files import locked, sha256_file, write_atomically
from nanoevolve_jax.errors import must

_TIMEOUT_SECONDS = 30
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset on the hub with shards 0 to `last`, the last one for validation."""

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
    """Downloads the shards that are missing on disk.

    Args:
      dataset: Dataset to download.
      folder: Folder of the shards.
      shards: Number of training shards; the first ones of the dataset are used.
      endpoint: Address of the hub; by default HF_ENDPOINT, else huggingface.co.
      progress: Callback with the bytes of a shard, downloaded and in total.

    Returns:
      (paths of the training shards, path of the validation shard).

    Raises:
      CorpusError: if there are fewer shards, or one cannot be downloaded.
    """
    if not 1 <= shards <= dataset.last:
        rule = f"be from 1 to {dataset.last}, the training shards of {dataset.repo}"
        raise CorpusError(must("config.data.shards", rule, shards))
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
    """Downloads one file of a dataset unless a verified copy is on disk.

    After a fault, the download pauses and then continues where it stopped. Each pause is twice as
    long as the last. Only consecutive faults without a new byte count as attempts.

    Args:
      repo: Repository of the dataset.
      name: Name of the file.
      folder: Folder of the file.
      endpoint: Address of the hub; by default HF_ENDPOINT, else huggingface.co.
      progress: Callback with the bytes of the file, downloaded and in total.
      attempts: Number of consecutive faults after which to give up.
      backoff_seconds: Length of the first pause.

    Returns:
      Path of the verified file in `folder`.

    Raises:
      CorpusError: if the hub has no such file, cannot be reached, or sends bytes that do not match
        the announced hash.
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
            # Every exception of the HTTP library is a fault: the types are those of httpx for
            # huggingface_hub 1 and of httpx2 for version 2.
            except Exception as fault:
                grew = _partial_bytes(folder, name) > before
                corrupted |= isinstance(fault, _CorruptedError)
                failed = 1 if grew and not corrupted else failed + 1
                if failed >= attempts or not _may_pass(fault):
                    raise CorpusError(
                        f"config.data.corpus: {url} cannot be downloaded "
                        f"({type(fault).__name__}: {fault}); the next run resumes the download"
                    ) from fault
                time.sleep(backoff_seconds * 2 ** (failed - 1))


class _CorruptedError(Exception):
    """The content does not match the announced hash."""


def _attempt(url: str, path: Path, progress: Progress | None) -> None:
    """Downloads the missing part of a file, verifies the file, and moves it into place."""
    # Without a token: the datasets are public, and the endpoint may be untrusted.
    announced = get_hf_file_metadata(url, token=False, timeout=_TIMEOUT_SECONDS)
    sha256 = announced.etag or ""
    if not _SHA256.fullmatch(sha256):  # the etag of each large file on the hub
        raise CorpusError(must(f"config.data.corpus: {url}", "announce a SHA-256", sha256))
    # The name includes the version, so that parts of different versions are never joined.
    part = path.with_name(f".{path.name}.{sha256[:16]}.part")
    _stream(url, part, announced.size, f"downloading {path.name}", progress)

    size, digest = part.stat().st_size, sha256_file(part)
    if digest != sha256:
        part.unlink()
        raise _CorruptedError(
            f"got {size} bytes with SHA-256 {digest} instead of {announced.size} with {sha256}"
        )
    os.replace(part, path)
    for outdated in path.parent.glob(f".{path.name}.*.part"):
        outdated.unlink()
    record = {"bytes": size, "sha256": sha256, "commit": announced.commit_hash}
    write_atomically(_record(path), json.dumps(record).encode())


def _stream(url: str, part: Path, size: int | None, what: str, progress: Progress | None) -> None:
    # Without buffering, so that all bytes before a fault are kept.
    with open(part, "ab", buffering=0) as file:
        done = file.tell()
        if size is not None and done >= size:
            return
        headers = {"Accept-Encoding": "identity"}  # byte ranges need the uncompressed content
        if done:
            headers["Range"] = f"bytes={done}-"
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_SECONDS
        ) as response:
            response.raise_for_status()
            if done and response.status_code != 206:  # the server sends everything again
                file.truncate(0)
                done = 0
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(what, done, size or 0)


def _may_pass(fault: Exception) -> bool:
    """Returns whether a retry may help; it cannot if the hub answers that there is no file."""
    status = getattr(getattr(fault, "response", None), "status_code", None)
    if isinstance(fault, HfHubHTTPError) and status is not None:
        return status in (408, 429) or status >= 500
    return True


def _partial_bytes(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f".{name}.*.part"))


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _verified(path: Path) -> bool:
    """Returns whether a file is the one that was downloaded and verified."""
    try:
        record = json.loads(_record(path).read_text())
        return path.stat().st_size == record["bytes"] and sha256_file(path) == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
