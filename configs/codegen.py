"""Code mutation: the default search's evaluation, with code proposed by language models.

  python -m nanoevolve_jax.codegen.autonomous --config=configs/codegen.py
      --config.codegen.ensemble=ollama --config.workdir=runs/codegen

Its cost is limited by `codegen.calls`, `tokens`, `dollars` and `seconds`.
"""

from nanoevolve_jax.configs import screen


def get_config(variant: str = "cpu"):
    """Returns the config of a variant of `configs/screen.py`."""
    config = screen.get_config(variant)
    config.workdir = "runs/codegen"
    return config
