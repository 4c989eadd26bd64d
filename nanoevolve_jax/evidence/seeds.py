"""Seeds and validation folds, allocated so that stages do not share them."""

import enum

from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.errors import EvidenceError

_CAMPAIGN_BITS, _INDEX_BITS = 16, 11  # the other 5 bits of a uint32 are for the stage

SEEDS_OF_A_STAGE = 2**_INDEX_BITS  # seeds per stage and campaign

SCREEN_FOLD = 0
PROMOTE_FOLD = 1
_FIRST_CONFIRM_FOLD = 2
CONFIRMATION_SEEDS = 64  # seeds per stage and confirmation
MOST_CONFIRMATIONS = SEEDS_OF_A_STAGE // CONFIRMATION_SEEDS  # limited by the seeds of a stage


class Stage(enum.IntEnum):
    """Purpose of a training run."""

    SCREEN = 0
    TUNE = 1
    TUNE_FINAL = 2
    NOISE = 3
    PROMOTE = 4
    CONFIRM = 5
    DISTURB = 6
    TRANSFER = 7
    CHEAPER = 8
    WIDER = 9
    COMPARE = 10


def stage_seed(stage: Stage, campaign: int, index: int) -> int:
    """Returns the seed of a run.

    Args:
      stage: Purpose of the run.
      campaign: Seed of the campaign, `config.seed`, from 0 to 65,535.
      index: Number of the run within the stage, from 0 to 2,047.

    Returns:
      Seed; a uint32. Different arguments give different seeds.

    Raises:
      ValueError: If an argument is out of its range.
    """
    if not 0 <= campaign < 2**_CAMPAIGN_BITS:
        raise ValueError(must("campaign", f"be from 0 to {2**_CAMPAIGN_BITS - 1}", campaign))
    if not 0 <= index < 2**_INDEX_BITS:
        raise ValueError(must("index", f"be from 0 to {2**_INDEX_BITS - 1}", index))
    return (int(stage) << (_CAMPAIGN_BITS + _INDEX_BITS)) | (campaign << _INDEX_BITS) | index


def confirmation_seeds(
    stage: Stage, campaign: int, number: int, count: int = CONFIRMATION_SEEDS
) -> list[int]:
    """Returns the seeds of a confirmation within a stage.

    Args:
      stage: Purpose of the runs.
      campaign: Seed of the campaign, `config.seed`.
      number: Number of the confirmation, counted from 0 over all campaigns of the evaluation.
      count: Number of seeds, at most `CONFIRMATION_SEEDS`.

    Returns:
      The first `count` of the seeds that are reserved for this confirmation.

    Raises:
      ValueError: If an argument is out of its range.
    """
    if not 0 <= count <= CONFIRMATION_SEEDS:
        raise ValueError(must("count", f"be from 0 to {CONFIRMATION_SEEDS}", count))
    first = number * CONFIRMATION_SEEDS
    return [stage_seed(stage, campaign, first + i) for i in range(count)]


def confirmation_fold(number: int, folds: int) -> int:
    """Returns the validation fold of a confirmation.

    Args:
      number: Number of the confirmation, counted from 0.
      folds: Number of validation folds, `config.data.folds`.

    Returns:
      Number of the fold.

    Raises:
      EvidenceError: If every fold has been used.
    """
    if number >= folds - _FIRST_CONFIRM_FOLD:
        used = folds - _FIRST_CONFIRM_FOLD
        rule = f"be larger, in a new calibration, because all {used} confirmations have been used"
        raise EvidenceError(must("config.data.folds", rule, folds))
    return _FIRST_CONFIRM_FOLD + number
