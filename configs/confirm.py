"""Confirmation: one candidate against the tuned baseline, at the full horizon, on fresh seeds.

  python -m nanoevolve_jax.confirm --config=configs/confirm.py --config.workdir=runs/mine

At the `:cpu` size a confirmation that ends null takes some minutes; a win goes on to attribution
and transfer, which cost several times as much.
"""

from nanoevolve_jax.configs import base


def get_config():
    """The fields that belong to this machine; the search decided everything else."""
    return base.get_config(base.CONFIRM_SETTINGS)
