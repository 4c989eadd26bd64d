"""Reruns pairs of a confirmation from its evidence card, and says whether they agree.

python -m nanoevolve_jax.replay runs/mine/evidence/g003c04.json --pairs=1
"""

from pathlib import Path

import numpy as np
from absl import flags

from configs.base import get_config
from nanoevolve_jax import command
from nanoevolve_jax.evidence.card import KIND
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.evolution.library import FOLDER, Library
from nanoevolve_jax.evolution.run_folder import describe_run
from nanoevolve_jax.execution.job import job_from_json
from nanoevolve_jax.site import local_site
from nanoevolve_jax.terminal.console import Console

_PAIRS = flags.DEFINE_integer("pairs", 1, "pairs of the confirmation to run again", lower_bound=1)
DISAGREES = 1


def replay(path: Path, pairs: int, console: Console) -> bool:
    """Trains the first pairs again and compares.

    On the machine and versions of the card the figures must be equal; elsewhere a pair's gain
    may differ by three paired sigmas.

    Raises:
      EvidenceError: if the card cannot be used, or the text is not the one it was made with.
      CertificateError: if the code of an arm is not in its run folder, or was changed.
    """
    card = read_sealed(path, KIND)
    if card["confirmation"] is None:
        raise EvidenceError(f"{path} holds no comparison; allowed: a card with a confirmation")
    if not card["seeds"]:
        raise EvidenceError(
            f"{path} holds no pair of runs, for {card['confirmation']['reason']}; "
            "allowed: a card with pairs"
        )
    config = get_config()  # the defaults stand for fields that are younger than the card
    config.update(card["config"])
    site = local_site(config, console, steps=config.confirm.steps, most=1)
    now = describe_run(config, site.facts, card["calibration"]["seal"])
    for name in ("corpus", "tokenizer"):
        if now["fingerprints"][name] != card["fingerprints"][name]:
            raise EvidenceError(
                f"{path} was made with {name} {card['fingerprints'][name]} and this is "
                f"{now['fingerprints'][name]}; allowed: the same {name}"
            )
    exact = (now["versions"], now["device"]) == (card["versions"], card["device"])
    engine = site.engine(config, MAIN)
    recorded = card["confirmation"]
    pairs = min(pairs, recorded["pairs"])
    common = {"steps": config.confirm.steps, "fold": card["fold"], "attempt": 0}
    common |= {"gate": None, "disturbance": None}
    code = Library(path.resolve().parent.parent / FOLDER)  # of the run folder with the card
    jobs = [
        job_from_json({"candidate": card["arms"][arm], "seed": seed} | common, code.get)
        for arm in ("baseline", "winner")
        for seed in card["seeds"][:pairs]
    ]
    found = np.array([result.val_bpb for result in engine.run(jobs)]).reshape(2, pairs)
    before = np.array(
        [
            [np.nan if x is None else x for x in recorded[f"{arm}_bpb"][:pairs]]
            for arm in ("baseline", "winner")
        ]
    )
    gains = before[0] - before[1], found[0] - found[1]
    for i, seed in enumerate(card["seeds"][:pairs]):
        console.say(f"seed {seed}: gain {gains[0][i]:+.6f} bpb on the card, {gains[1][i]:+.6f} now")
    limit = 0.0 if exact else 3.0 * card["calibration"]["paired_sigma"]
    agree = agrees(before, found, limit)
    how = "exactly" if exact else "within three paired sigmas (other versions or device)"
    console.say(f"{'agrees' if agree else 'DISAGREES'} {how}")
    return agree


def agrees(before: np.ndarray, found: np.ndarray, limit: float) -> bool:
    """Whether runs say what they said before; the same ones must have failed.

    Args:
      before: float[2, pairs], bpb of baseline and winner on the card; NaN: failed.
      found: float[2, pairs], now.
      limit: how far the gain of a pair may be off, in bpb; 0: every figure must be equal.
    """
    if limit == 0:
        return np.array_equal(before, found, equal_nan=True)
    off = np.abs((before[0] - before[1]) - (found[0] - found[1]))
    return np.array_equal(np.isnan(before), np.isnan(found)) and not np.any(off > limit)


def main(arguments: list[str]) -> int:
    """The command; gives the exit code."""
    if len(arguments) != 1:
        command.fail(f"{len(arguments)} arguments; allowed: one evidence card, evidence/<id>.json")
    return 0 if replay(Path(arguments[0]), _PAIRS.value, Console()) else DISAGREES


if __name__ == "__main__":
    command.run_on_arguments(main)
