"""The commands on an evidence card: how to get to it from nothing, and how to check it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax.configs import screen
from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.evidence.calibration_file import KIND as CALIBRATION
from nanoevolve_jax.evidence.forms import CalibrationForm
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.execution.received import flat

_DEVICES = ("devices", "threads")  # of this machine, but bits depend on them


def commands(config: ConfigDict, calibration: Path, where: str, candidate: str) -> list[str]:
    """Returns the commands that lead from nothing to a card, and the one that checks it.

    Args:
      config: Config of the search; its texts are named as the search named them.
      calibration: Path of the calibration that applies.
      where: Path of the calibration when the search was started.
      candidate: Id of the candidate.
    """
    began_with = ConfigDict(read_sealed(calibration, CALIBRATION, CalibrationForm)["config"])
    folder, here = Path(config.workdir), _changed(config, _DEVICES)
    lines = {
        "calibrate": [*flags(began_with, recipe=True), f"--config.workdir={Path(where).parent}"],
        "search": [
            *flags(config, recipe=False),
            *(f"--config.calibration={where}", f"--config.workdir={folder}"),
        ],
        "confirm": [
            *("--config=configs/confirm.py", *here),
            *(f"--config.workdir={folder}", f"--config.candidate={candidate}"),
        ],
        "replay": [*here, str(folder / "evidence" / f"{candidate}.json")],
    }
    return [f"python -m nanoevolve_jax.{name} {shlex.join(rest)}" for name, rest in lines.items()]


def flags(config: ConfigDict, *, recipe: bool) -> list[str]:
    """Returns the flags that make a config of the default one, except for places.

    Args:
      config: Config of a command; a field that it lacks, being older, is at its default.
      recipe: Whether its recipe is stated.
    """
    stated = [
        path
        for path, setting in SETTINGS.items()
        if (setting.scope == "result" or path in _DEVICES)
        and path != "train.evaluations"
        and (recipe or not path.startswith("recipe."))
    ]
    return ["--config=configs/screen.py", *_changed(config, stated)]


def _changed(config: ConfigDict, paths: Sequence[str]) -> list[str]:
    """Flags of those fields that are not as in the default config."""
    own, usual = flat(config.to_dict()), flat(screen.get_config().to_dict())
    return [
        f"--config.{path}={own[path]}"
        for path in paths
        if own.get(path, usual[path]) != usual[path]
    ]
