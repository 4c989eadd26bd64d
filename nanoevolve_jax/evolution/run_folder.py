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

from nanoevolve_jax.evidence.calibration_file import differences
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.execution.population import visible_cores

# What may change between two runs on one folder without changing any record.
_FREE = ("workdir", "data.cache_dir", "data.corpus", "search.generations", "calibration")
# What comes after a search: other rules of confirmation do not make it another campaign.
_AFTERWARDS = ("confirm", "attribute", "transfer", "calibrate")
_DECIDING = ("corpus", "tokenizer", "calibration", "config")  # of the fingerprints
_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")


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


def describe_run(
    config: ConfigDict, rows_fingerprints: dict[str, str], devices: int, calibration: str
) -> dict:
    """The contents of `config.json`: config, versions, device and the fingerprints.

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
    texts = [rows_fingerprints["corpus"], rows_fingerprints["tokenizer"], calibration]
    return {
        "config": resolved,
        "versions": versions,
        "device": facts,
        "fingerprints": {
            "corpus": rows_fingerprints["corpus"],
            "tokenizer": rows_fingerprints["tokenizer"],
            "calibration": calibration,
            "campaign": _digest([_without(resolved, _FREE + _AFTERWARDS), texts]),
            "config": _digest([_without(resolved, _FREE), versions, facts]),
        },
    }


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
        prints = description["fingerprints"]
        changed = [k for k in _DECIDING if old_prints.get(k) != prints[k]]
        if changed:
            new = description
            facts = [_without(new["config"], _FREE), new["versions"], new["device"]]
            details = [d for o, n in zip(old_facts, facts, strict=True) for d in differences(o, n)]
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
