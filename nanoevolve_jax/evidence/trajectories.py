"""The telemetry of a run, stored as `telemetry/<name>.npz` in a run folder."""

import math
import os
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.json_files import is_id
from nanoevolve_jax.execution.plain_files import (
    open_plain,
    replacing,
    subfolder,
)
from nanoevolve_jax.execution.train import TELEMETRY

FOLDER = "telemetry"
MOST_STEPS = 10_000_000
_MOST_COLUMNS = 256
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_CURVE = ("validation_step", "validation_bpb")  # columns with an entry per validation
SCREENED = ("grad_norm", *_CURVE)
"""Columns that only the telemetry of a screening run has."""
_NEEDED = tuple(name for name in TELEMETRY if name != "log_grad_norm")


def save_telemetry(folder: Path, name: str, columns: Mapping[str, np.ndarray]) -> None:
    """Writes all columns of a run atomically.

    Args:
      folder: Run folder.
      name: Id of the candidate for a screening run; otherwise, the key of the run.
      columns: Columns by name, [steps] each, and the validation curve.
    """
    path = _path(folder, name)
    subfolder(folder, FOLDER)
    with replacing(path) as file:
        np.savez_compressed(file, **dict[str, Any](columns))


def read_telemetry(
    folder: Path, name: str, more: Collection[str] = ()
) -> dict[str, np.ndarray] | None:
    """Reads the columns of a run.

    Args:
      folder: Run folder.
      name: Name that was passed to `save_telemetry`.
      more: Names of required columns in addition to those of every run, such as `SCREENED`.

    Returns:
      Columns by name, or None if there is no such file.

    Raises:
      EvidenceError: If the file is damaged or contains anything except columns of numbers.
    """
    path = _path(folder, name)
    try:
        with os.fdopen(open_plain(path, os.O_RDONLY, follow=True), "rb") as file:
            columns = _columns(file)
        if missing := [name for name in (*_NEEDED, *more) if name not in columns]:
            raise ValueError(f"it must have a column {missing[0]}")
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        raise EvidenceError(f"{path} cannot be read: {error}") from None
    return columns


def _columns(file) -> dict[str, np.ndarray]:
    """Returns the columns of an .npz file, each checked before memory is allocated for it."""
    columns: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as members:
        names = members.namelist()
        if len(names) > _MOST_COLUMNS:
            raise ValueError(f"it must hold at most {_MOST_COLUMNS} columns, got {len(names)}")
        for name in names:
            kind = members.getinfo(name).compress_type
            if not name.endswith(".npy") or kind not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"it must hold columns as numpy writes them, got {name!r}")
            with members.open(name) as member:
                columns[name.removesuffix(".npy")] = _column(name, member)
    by_step = {len(x) for name, x in columns.items() if name not in _CURVE}
    points = {len(columns[name]) if name in columns else None for name in _CURVE}
    if len(by_step) > 1 or len(points) > 1:
        raise ValueError("its columns must have one length, got several")
    return columns


def _column(name: str, member) -> np.ndarray:
    if (version := npy.read_magic(member)) != (1, 0):
        raise ValueError(f"{name} must be of .npy format 1.0, got {version}")
    try:
        shape, _, dtype = npy.read_array_header_1_0(member)
    except Exception:  # numpy raises many types of errors for invalid headers
        raise ValueError(f"{name} must begin with the header of a column") from None
    kinds = "iu" if name == f"{_CURVE[0]}.npy" else "fiu"
    if dtype.kind not in kinds or len(shape) != 1 or not 0 <= shape[0] <= MOST_STEPS:
        raise ValueError(
            f"{name} must be a column of at most {MOST_STEPS:,} numbers, got {dtype} {shape}"
        )
    content = member.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(content, dtype, shape[0]).copy()


def _path(folder: Path, name: str) -> Path:
    if not is_id(name):
        raise EvidenceError(f"name of telemetry must be an id, got {name!r}")
    return folder / FOLDER / f"{name}.npz"
