"""Replay: pairs of a confirmation trained again from its evidence card.

  python -m nanoevolve_jax.replay runs/mine/evidence/ID.json

At the `:cpu` size one pair takes about half a minute on two cores.
"""

from nanoevolve_jax.configs import base


def get_config():
    """The fields that belong to this machine; everything else comes from the card."""
    return base.get_config(base.REPLAY_SETTINGS)
