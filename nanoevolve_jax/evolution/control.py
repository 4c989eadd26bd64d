"""The control lineage: mutants of the recipe alone, which any policy must beat.

A policy that wins only because its baseline was a little mistuned is caught by a lineage that
gets the same chances to retune.
"""

from collections.abc import Callable

import numpy as np

from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.policy.spec import OptimizerSpec

OPERATOR = "adjust_recipe"
_ADAMW = ("embedding_lr", "unembedding_lr", "scalar_lr")
_DIGITS = 4

Values = dict[str, float]


def _scale(*names: str, spread: float) -> Callable[[Values, np.random.Generator], Values]:
    def operator(values, rng):
        factor = float(np.exp(rng.normal(0.0, spread)))
        return {name: values[name] * factor for name in names}

    return operator


def _shift(name: str, spread: float) -> Callable[[Values, np.random.Generator], Values]:
    return lambda values, rng: {name: values[name] + float(rng.normal(0.0, spread))}


def _scale_memory(name: str, spread: float) -> Callable[[Values, np.random.Generator], Values]:
    return lambda values, rng: {
        name: 1.0 - (1.0 - values[name]) * float(np.exp(rng.normal(0.0, spread)))
    }


_OPERATORS = (
    _scale("matrix_lr", spread=0.3),
    _scale(*_ADAMW, spread=0.3),
    _scale("weight_decay", spread=0.7),
    _shift("warmup_fraction", spread=0.03),
    _shift("warmdown_fraction", spread=0.1),
    _shift("final_lr_fraction", spread=0.05),
    _scale_memory("momentum", spread=0.5),
    _scale_memory("second_moment_beta", spread=0.5),
)


def _bounded(name: str, value: float) -> float:
    setting = SETTINGS[f"recipe.{name}"]
    return min(max(float(f"{value:.{_DIGITS}g}"), setting.low), setting.high)


def mutate_recipe(values: Values, rng: np.random.Generator) -> tuple[Values, str]:
    """Changes one aspect of a recipe.

    Args:
      values: every field of the recipe, named as in `configs.base.SETTINGS`.
      rng: source of randomness; consumed.

    Returns:
      (the fields that changed, the change in words).
    """
    while True:
        operator = _OPERATORS[rng.integers(len(_OPERATORS))]
        changed = {name: _bounded(name, x) for name, x in operator(values, rng).items()}
        if any(values[name] != x for name, x in changed.items()):
            words = (f"recipe.{name} {values[name]:g} -> {x:g}" for name, x in changed.items())
            return changed, "; ".join(words)


def spec_of(baseline: OptimizerSpec, overrides: Values) -> OptimizerSpec:
    """The baseline's spec under overrides; two of a recipe's fields live in the spec."""
    own = {name: x for name, x in overrides.items() if name not in Recipe._fields}
    return baseline._replace(**own)
