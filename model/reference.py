"""Reference figures computed by PyTorch NanoChat, read from an npz file.

A file holds the arrays of one model (`config`, `derived`, `params/<name>`, `idx`, `targets`,
`logits`, losses, bits per byte and `grads/<name>`), those of single optimizer kernels, or both. A
cut file is a small copy: large arrays are flattened and keep every `cut/stride`-th entry, and
parameters are drawn again from their seed.
"""

import functools
import json
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.errors import must
from nanoevolve_jax.model import nanochat
from nanoevolve_jax.model.config import GPTConfig

SEED = 1  # seed of all parameters in the reference files
STRIDE = 17  # prime, so a sample covers every column of a matrix
WHOLE = 256  # arrays of at most this size are not cut
SAMPLED = ("grads/", "params_after_1/", "params_after_5/", "muon_after_5/")
KERNEL_RESULTS = ("/params", "_buffer")
KERNELS = ("muon/", "adamw/", "schedule/")


class BadReference(ValueError):
    """A file that does not follow the schema; the message is one line."""


class Reference:
    """Arrays of one file, by key, and the model they belong to."""

    def __init__(self, path: str | pathlib.Path):
        self.path = str(path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise BadReference(f"{self.path} must be an npz file")
                self.arrays = {key: archive[key] for key in archive.files}
        except FileNotFoundError:
            raise BadReference(f"{self.path} does not exist") from None
        except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, BadReference):
                raise
            raise BadReference(f"{self.path} must be an npz file that can be read") from None

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            raise BadReference(f"{self.path} must have the array {key!r}")
        return self.arrays[key]

    @property
    def has_model(self) -> bool:
        """Whether the file holds figures of the model."""
        return not self.has_kernels or "config" in self.arrays

    @property
    def has_kernels(self) -> bool:
        """Whether the file holds figures of kernels."""
        return any(key.startswith(KERNELS) for key in self.arrays)

    def array(self, key: str, *shape: int) -> np.ndarray:
        """Returns the array at `key`.

        Raises:
          BadReference: If it is missing or has another shape.
        """
        array = self[key]
        if array.shape != shape:
            raise BadReference(must(f"{self.path}: {key!r}", f"have shape {shape}", array.shape))
        return array

    def json(self, key: str):
        """Returns the value of the JSON text at `key`."""
        try:
            return json.loads(str(self[key]))
        except json.JSONDecodeError:
            raise BadReference(f"{self.path}: {key!r} must be JSON") from None

    @functools.cached_property
    def config(self) -> GPTConfig:
        """Config of the model."""
        try:
            return GPTConfig(**self.json("config"))
        except (TypeError, ValueError) as error:
            raise BadReference(f"{self.path}: config: {error}") from None

    @functools.cached_property
    def params(self) -> dict:
        """Initial parameters in the structure of `init_params`."""
        state = self.group("params/")
        if not state and "cut/crc" in self.arrays:
            state = drawn_params(self.config)
            if _crc(state) != int(self["cut/crc"]):
                raise BadReference(f"{self.path}: this version of NumPy draws different parameters")
        try:
            return nanochat.from_nanochat(state, self.config)
        except ValueError as error:
            raise BadReference(f"{self.path}: params: {error}") from None

    def tokens(self, key: str, *shape: int, lowest: int = 0) -> np.ndarray:
        """Returns token ids, int32[shape]; without `shape` any shape is accepted.

        Raises:
          BadReference: If they are not integers from `lowest` to the end of the vocabulary.
        """
        ids = self.array(key, *shape) if shape else self[key]
        integers = np.issubdtype(ids.dtype, np.integer)
        if not integers or ids.size == 0 or ids.min() < lowest or ids.max() >= self.vocab_size:
            raise BadReference(
                f"{self.path}: {key!r} must hold token ids from {lowest} to {self.vocab_size - 1}"
            )
        return ids.astype(np.int32)

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the model."""
        return self.config.vocab_size

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the arrays whose key starts with `prefix`, by the rest of the key."""
        keys = (key for key in self.arrays if key.startswith(prefix))
        return {key.removeprefix(prefix): self.arrays[key] for key in keys}

    def matching(self, key: str, computed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns a computed array, cut like the stored array, and the stored array."""
        computed = np.asarray(computed)
        if "cut/stride" in self.arrays and _is_sampled(key):
            computed = _sample(computed, int(self["cut/stride"]))
        return computed, self.array(key, *computed.shape)


def drawn_params(config: GPTConfig) -> dict[str, np.ndarray]:
    """Returns the parameters of the reference files, in PyTorch layout."""
    rng = np.random.default_rng(SEED)
    shapes = nanochat.shapes(config)
    state = {}
    for name in sorted(shapes):
        draw = rng.standard_normal(shapes[name])
        scale = 0.05 if draw.ndim == 2 else 0.1
        state[name] = ((name == "resid_lambdas") + scale * draw).astype(np.float32)
    return state


def write_cut(path: str | pathlib.Path, destination: str | pathlib.Path, stride: int = STRIDE):
    """Writes a cut copy of a reference file, without redundant inputs."""
    whole = Reference(path)
    arrays = dict(whole.arrays)
    if whole.has_model:
        state = drawn_params(whole.config)
        if _crc(state) != _crc(whole.group("params/")):
            raise BadReference(f"{path}: params must be the draw of seed {SEED}")
        arrays = {key: a for key, a in arrays.items() if not key.startswith("params/")}
        arrays["cut/crc"] = np.int64(_crc(state))
    for key in arrays:
        rows, _, columns = key.partition("/")[2].partition("/")[0].partition("x")
        if key.startswith("muon/") and rows != columns and arrays[key].ndim >= 3:
            arrays[key] = arrays[key][..., :1, :, :]  # one matrix per shape that is not square
        if _is_sampled(key):
            arrays[key] = _sample(arrays[key], stride)
    arrays["cut/stride"] = np.int64(stride)
    np.savez_compressed(destination, **arrays)


def _is_sampled(key: str) -> bool:
    """Returns whether a cut file keeps only some entries of this array."""
    return key.startswith(SAMPLED) or (key.startswith("muon/") and key.endswith(KERNEL_RESULTS))


def _sample(array: np.ndarray, stride: int) -> np.ndarray:
    return array if array.size <= WHOLE else array.ravel()[::stride]


def _crc(state: dict[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(state):
        crc = zlib.crc32(np.ascontiguousarray(state[name]).tobytes(), crc)
    return crc


# Comparisons -------------------------------------------------------------------------------


class Check(NamedTuple):
    """A row of the table."""

    name: str
    max_abs: float  # largest absolute error
    relative: float  # L2 norm of the error over the L2 norm of the reference
    gate: str  # tolerance, as text
    passed: bool


def within(
    name: str, got, want, max_abs: float | None = None, *, relative=None, noise=0.0
) -> Check:
    """Compares two arrays by their largest absolute error or their relative L2 error.

    Args:
      name: Name of the quantity.
      got: Computed array.
      want: Reference array of the same shape.
      max_abs: Tolerance of the largest absolute error, or None.
      relative: Tolerance of the relative L2 error, used if `max_abs` is None.
      noise: Absolute error below which the relative tolerance does not apply.

    Returns:
      Row of the table. Values that are not finite never pass.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf is nan, which never passes
        error = np.abs(got - want)
    largest = float(error.max(initial=0.0))
    norm = float(np.linalg.norm(want))
    length = float(np.linalg.norm(error))
    ratio = 0.0 if length == 0 else length / norm if norm else np.inf
    if max_abs is None:
        passed = ratio <= relative or largest <= noise
        return Check(name, largest, ratio, f"rel <= {relative:.0e}", bool(passed))
    gate = f"max <= {max_abs:.0e}" if max_abs else "exact"
    return Check(name, largest, ratio, gate, bool(largest <= max_abs))


def worst(name: str, checks: Sequence[Check]) -> list[Check]:
    """Summarises checks with the same tolerance: all failures, or the worst passing check."""
    failed = [check for check in checks if not check.passed]
    if failed:
        return failed
    top = max(checks, key=lambda check: check.relative)
    largest = max(check.max_abs for check in checks)
    return [Check(f"{name} ({len(checks)}, worst {top.name})", largest, *top[2:])]
