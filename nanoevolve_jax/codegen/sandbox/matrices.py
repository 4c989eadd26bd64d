"""Which matrices code must work for."""

from ml_collections import ConfigDict

from nanoevolve_jax.execution.cost import matrix_shapes
from nanoevolve_jax.execution.settings import make_task


def matrices(config: ConfigDict) -> list[tuple[int, int]]:
    """(inputs, outputs) of every matrix that Muon updates in a config's model."""
    return list(matrix_shapes(make_task(config).model))
