"""Reads the run folder of a finished search, so that one of its candidates can be tested."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import SAME
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.run_folder import config_of, read_description
from nanoevolve_jax.execution.received import corpus_here
from nanoevolve_jax.execution.settings import get_setting


class Search(NamedTuple):
    """The config of a search, with the places and devices of this machine."""

    config: ConfigDict  # its texts are named as the search named them
    here: ConfigDict  # its texts are where they are on this machine
    calibration: str  # path of the calibration when the search was started, for people

    def named(self, config: ConfigDict) -> ConfigDict:
        """Returns a config that is to be written: its texts are named as the search named them."""
        named = config.copy_and_resolve_references()
        named.data.corpus = self.config.data.corpus
        named.attribute.switch_corpus = self.config.attribute.switch_corpus
        return named


def read_search(settings: ConfigDict) -> Search:
    """Reads the config of a run folder. What decides results is from it, the rest from settings.

    Args:
      settings: Fields of `configs.base.CONFIRM_SETTINGS`.

    Raises:
      ArchiveError: if the folder holds no run.
      EvidenceError: if its search had no calibration, or that is not at hand.
      ConfigError: if its config is invalid, or names a text that is not found on this machine.
    """
    folder = Path(settings.workdir)
    try:
        description = read_description(folder)
    except (OSError, ValueError) as error:
        raise ArchiveError(
            f"{must('config.workdir', 'be the folder of a finished search', str(folder))} ({error})"
        ) from None
    document = description["config"]
    calibration = str(document.get("calibration", UNCALIBRATED))
    fingerprint = description.get("fingerprints", {}).get("corpus")
    config = config_of(document, folder, settings)
    if config.calibration == UNCALIBRATED:
        raise EvidenceError(
            f"config.workdir must be a search with a calibration, got {str(folder)!r} without one; "
            "run calibrate, then a search with --config.calibration"
        )
    if settings.calibration != SAME:
        config.calibration = settings.calibration
    elif not Path(config.calibration).is_file():
        raise EvidenceError(
            f"config.calibration must be the calibration.json of the search, because {folder} has "
            "no copy of it"
        )
    here = config.copy_and_resolve_references()
    texts = {"data.corpus": fingerprint}
    if settings.until != "confirm":  # only what comes after a win reads the second text
        texts["attribute.switch_corpus"] = None
    for field, known in texts.items():
        named, given = get_setting(config, field), get_setting(settings, field)
        source = str(folder / "config.json")
        place = corpus_here(named, given, config.data.cache_dir, known, field, source)
        here.update_from_flattened_dict({field: place})
    return Search(config, here, calibration)
