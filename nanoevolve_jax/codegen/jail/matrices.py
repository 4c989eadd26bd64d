"""Which matrices code must work for: those of a config's model, and of its wider one."""

import jax
from ml_collections import ConfigDict

from model import gpt
from nanoevolve_jax.evidence.transfer import wider
from nanoevolve_jax.execution.schedules import nanochat_labels
from nanoevolve_jax.execution.settings import make_task
from nanoevolve_jax.policy.transform import MATRIX


def matrices(config: ConfigDict) -> list[tuple[int, int]]:
    """(inputs, outputs) of every matrix that Muon updates in a config's model."""
    model = make_task(config).model
    params = jax.eval_shape(lambda: gpt.init_params(model, jax.random.key(0)))
    leaves, labels = jax.tree.leaves(params), jax.tree.leaves(nanochat_labels(params))
    return [x.shape[-2:] for x, label in zip(leaves, labels, strict=True) if label == MATRIX]


def matrices_of_evaluation(config: ConfigDict) -> list[tuple[int, int]]:
    """Those of a config's model and of the wider one that a confirmation may train."""
    return [*matrices(config), *matrices(wider(config))]
