"""Seeds and validation folds that no two stages share, by construction."""

import enum

from nanoevolve_jax.evidence.errors import EvidenceError

_CAMPAIGN_BITS, _INDEX_BITS = 16, 11  # beside 5 bits of stage they fill a uint32

SEEDS_OF_A_STAGE = 2**_INDEX_BITS  # that a campaign has

SCREEN_FOLD = 0
PROMOTE_FOLD = 1
_FIRST_CONFIRM_FOLD = 2
CONFIRMATION_SEEDS = 64  # that a confirmation has of each stage
MOST_CONFIRMATIONS = SEEDS_OF_A_STAGE // CONFIRMATION_SEEDS  # whose seeds a stage has room for


class Stage(enum.IntEnum):
    """What a training run is for."""

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
    """The seed of one run; different arguments give different seeds.

    Args:
      stage: what the run is for.
      campaign: `config.seed`, 0 to 65,535.
      index: number of the run within the stage, 0 to 2,047.

    Returns:
      A uint32.

    Raises:
      ValueError: if an argument is out of its range.
    """
    if not 0 <= campaign < 2**_CAMPAIGN_BITS:
        raise ValueError(f"campaign is {campaign}; allowed: 0 to {2**_CAMPAIGN_BITS - 1}")
    if not 0 <= index < 2**_INDEX_BITS:
        raise ValueError(f"index is {index}; allowed: 0 to {2**_INDEX_BITS - 1}")
    return (int(stage) << (_CAMPAIGN_BITS + _INDEX_BITS)) | (campaign << _INDEX_BITS) | index


def confirmation_seeds(
    stage: Stage, campaign: int, number: int, count: int = CONFIRMATION_SEEDS
) -> list[int]:
    """The first seeds of one confirmation within a stage; no other confirmation has them.

    Args:
      stage: what they are for.
      campaign: `config.seed`.
      number: of the confirmation, from 0 over all campaigns of the evaluation.
      count: at most `CONFIRMATION_SEEDS`.

    Raises:
      ValueError: if there are not so many.
    """
    if not 0 <= count <= CONFIRMATION_SEEDS:
        raise ValueError(f"count is {count}; allowed: 0 to {CONFIRMATION_SEEDS}")
    first = number * CONFIRMATION_SEEDS
    return [stage_seed(stage, campaign, first + i) for i in range(count)]


def confirmation_fold(number: int, folds: int) -> int:
    """The validation fold of the confirmation of that number, counted from 0.

    Raises:
      EvidenceError: if every fold has been used.
    """
    if number >= folds - _FIRST_CONFIRM_FOLD:
        raise EvidenceError(
            f"config.data.folds is {folds}, so {folds - _FIRST_CONFIRM_FOLD} confirmations, and "
            "all of them have been used; allowed: a new calibration with more folds or other text"
        )
    return _FIRST_CONFIRM_FOLD + number
