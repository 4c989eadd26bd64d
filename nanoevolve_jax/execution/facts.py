"""What the bits of a run depend on besides its config: text, versions, device, code."""

import hashlib
from importlib import metadata
from typing import Any, NamedTuple

import jax

from nanoevolve_jax.execution.sources import source_files
from nanoevolve_jax.execution.threads import compute_threads

_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")
_CONFIGS = "nanoevolve_jax/configs/"  # the values of a run are compared by themselves


class Facts(NamedTuple):
    """Of a process that trains candidates; equal facts and jobs give equal bits."""

    corpus: str  # fingerprint
    tokenizer: str  # fingerprint
    versions: dict[str, str]
    device: dict[
        str, Any
    ]  # platform, kind, devices of the mesh, cores that compute, 0 on an accelerator
    lanes: int  # candidates a device trains at once
    data_parallel: int  # devices that share a candidate
    code: str  # fingerprint of this program's own sources

    @property
    def width(self) -> int:
        """Candidates that the process trains at once."""
        return self.device["devices"] // self.data_parallel * self.lanes


def gather_facts(
    fingerprints: dict[str, str], devices: int, lanes: int, data_parallel: int
) -> Facts:
    """The facts of this process.

    Args:
      fingerprints: of its rows, `corpus` and `tokenizer` among them.
      devices: of its mesh.
      lanes: candidates a device trains at once.
      data_parallel: devices that share a candidate.
    """
    device = jax.devices()[0]
    return Facts(
        corpus=fingerprints["corpus"],
        tokenizer=fingerprints["tokenizer"],
        versions={name: metadata.version(name) for name in _VERSIONS},
        device={
            "platform": device.platform,
            "kind": device.device_kind,
            "devices": devices,
            "cores": compute_threads() if device.platform == "cpu" else 0,
        },
        lanes=lanes,
        data_parallel=data_parallel,
        code=_code(),
    )


def _code() -> str:
    """Returns sixteen hexadecimal digits of every source file that training depends on."""
    digest = hashlib.sha256()
    for name, path in source_files().items():
        if not name.startswith(_CONFIGS):
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two nested dicts differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{path}.{n}")]
    return [] if old == new else [f"{path.lstrip('.')} is {new!r} and was {old!r}"]
