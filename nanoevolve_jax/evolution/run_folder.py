"""The run folder: what a search was run with, and where its results lie."""

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.population import visible_cores

# What may change between two runs on one folder without changing any record.
_FREE = ("workdir", "data.cache_dir", "data.corpus", "search.generations")
_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")


def write_json(path: Path, document: Any) -> None:
    """Writes a whole file or nothing: to a neighbour, synced, then renamed."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def _without(document: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    document = json.loads(json.dumps(document))
    for path in paths:
        *groups, name = path.split(".")
        node = document
        for group in groups:
            node = node[group]
        node.pop(name)
    return document


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def describe_run(config: ConfigDict, rows_fingerprints: dict[str, str], devices: int) -> dict:
    """The contents of `config.json`: config, versions, device and the three fingerprints.

    Lanes, device count, visible cores and versions round differently, so they are part of the
    config's fingerprint; the text is in the corpus's.
    """
    device = jax.devices()[0]
    facts = {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": devices,
        "cores": visible_cores(),
    }
    versions = {name: metadata.version(name) for name in _VERSIONS}
    resolved = config.to_dict()
    return {
        "config": resolved,
        "versions": versions,
        "device": facts,
        "fingerprints": {
            "corpus": rows_fingerprints["corpus"],
            "tokenizer": rows_fingerprints["tokenizer"],
            "config": _digest([_without(resolved, _FREE), versions, facts]),
        },
    }


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{path}.{n}")]
    return [] if old == new else [f"{path.lstrip('.')} is {new!r} and was {old!r}"]


def open_folder(folder: Path, description: dict[str, Any]) -> None:
    """Makes the folder a run of this description, or checks that it is one already.

    Raises:
      ArchiveError: if the folder holds a run with other fingerprints, naming what differs, or
        its `config.json` is damaged.
    """
    path = folder / "config.json"
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            old_prints = dict(old["fingerprints"])
            old_facts = [_without(old["config"], _FREE), old["versions"], old["device"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArchiveError(f"{path} is damaged ({error!r}); choose another workdir") from None
        changed = [k for k, v in description["fingerprints"].items() if old_prints.get(k) != v]
        if changed:
            new = description
            facts = [_without(new["config"], _FREE), new["versions"], new["device"]]
            details = [d for o, n in zip(old_facts, facts, strict=True) for d in _differences(o, n)]
            raise ArchiveError(
                f"config.workdir is {str(folder)!r}, a run with another {' and '.join(changed)}"
                f"{': ' if details else ''}{'; '.join(details)}; "
                "allowed: a new folder, or the settings it was started with"
            )
    elif (folder / "archive.jsonl").exists():
        raise ArchiveError(
            f"config.workdir is {str(folder)!r}, with an archive but no config.json to say how it "
            "was made; allowed: a new folder"
        )
    try:
        (folder / "telemetry").mkdir(parents=True, exist_ok=True)
        write_json(path, description)
    except OSError as error:
        raise ArchiveError(
            f"config.workdir is {str(folder)!r}; allowed: a folder that can be written ({error})"
        ) from None


def save_telemetry(folder: Path, name: str, columns: dict[str, np.ndarray]) -> None:
    """Writes one candidate's per-step telemetry to `telemetry/<id>.npz`."""
    path = folder / "telemetry" / f"{name}.npz"
    scratch = path.with_name(f".{name}.npz")
    with open(scratch, "wb") as file:
        np.savez_compressed(file, **columns)
    os.replace(scratch, path)
