"""What every step of a run recorded, on disk: `telemetry/<name>.npz` of a run folder."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nanoevolve_jax.evidence.errors import EvidenceError

FOLDER = "telemetry"


def save_telemetry(folder: Path, name: str, columns: Mapping[str, np.ndarray]) -> None:
    """Writes the columns of a run whole or not at all.

    Args:
      folder: of the run.
      name: the id of a candidate, for its screening run, or the key of another run.
      columns: [steps] each, and the validation curve.
    """
    path = _path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    with open(scratch, "wb") as file:
        np.savez_compressed(file, **columns)
    os.replace(scratch, path)


def read_telemetry(folder: Path, name: str) -> dict[str, np.ndarray] | None:
    """The columns that were saved under a name; None: there are none.

    Raises:
      EvidenceError: if the file is damaged.
    """
    path = _path(folder, name)
    try:
        with np.load(path) as columns:
            return {column: columns[column] for column in columns.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EvidenceError(f"{path} cannot be read: {error}") from None


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.npz"
