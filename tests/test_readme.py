"""The README is short, its links lead somewhere, and its code runs."""

import re

import jax.numpy as jnp


def test_the_readme_fits_on_150_lines(repository):
    assert len((repository / "README.md").read_text().splitlines()) <= 150


def test_the_training_loop_of_the_readme_runs_in_eight_lines(repository):
    (loop,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert len(loop.split("\n")) - loop.count("\n\n") - 1 == 8  # without empty lines
    inputs, outputs = jnp.eye(8), jnp.ones((8, 4))
    names: dict = {
        "params": {"hidden": jnp.eye(8), "head": jnp.zeros((8, 4))},
        "loss_fn": lambda p, batch: jnp.mean((batch @ p["hidden"] @ p["head"] - outputs) ** 2),
        "batches": [inputs] * 5,
    }
    exec(loop, names)
    assert names["loss"] < 1.0  # the loss of the first step
    assert 0 < names["gate"] < 1
