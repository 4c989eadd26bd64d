"""NanoEvolve: evolve optimizer policies that sense the state of training."""

import importlib
from typing import Any

# Public names of the library and their modules. A name is imported when it is first used, because
# `nanoevolve --help` does not need JAX.
_HOMES = {
    "PRESETS": "policy.spec",
    "AdamWGroup": "policy.transform",
    "OptimizerSpec": "policy.spec",
    "SpecError": "policy.spec_json",
    "candidate_optimizer": "policy.transform",
    "default_labels": "policy.labels",
    "evolved_muon": "policy.transform",
    "labels": "policy.labels",
    "load_spec": "policy.spec_json",
    "optimizer": "policy.drop_in",
    "spec_from_json": "policy.spec_json",
    "spec_to_json": "policy.spec_json",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
