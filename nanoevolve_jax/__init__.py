"""NanoEvolve: evolve optimizer policies that sense the state of training."""

from nanoevolve_jax.policy.drop_in import optimizer
from nanoevolve_jax.policy.labels import default_labels
from nanoevolve_jax.policy.spec import PRESETS, OptimizerSpec
from nanoevolve_jax.policy.spec_json import SpecError, load_spec, spec_from_json, spec_to_json
from nanoevolve_jax.policy.transform import AdamWGroup, candidate_optimizer, evolved_muon

__all__ = [
    "PRESETS",
    "AdamWGroup",
    "OptimizerSpec",
    "SpecError",
    "candidate_optimizer",
    "default_labels",
    "evolved_muon",
    "load_spec",
    "optimizer",
    "spec_from_json",
    "spec_to_json",
]
__version__ = "0.1.0"
