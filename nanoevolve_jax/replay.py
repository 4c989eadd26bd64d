"""Reruns pairs of a confirmation from its evidence card, and says whether they agree.

  python -m nanoevolve_jax.replay runs/mine/evidence/g003c04.json --pairs=1
  python -m nanoevolve_jax.replay card.json --config.data.corpus=parquet:DIR

The card decides what is trained; the fields below belong to this machine. A text that is a folder
is found if it was used here before. The result is written beside the card, for level 5.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from nanoevolve_jax import command, plugins
from nanoevolve_jax.configs.base import REPLAY_SETTINGS
from nanoevolve_jax.evidence.card import REPLAY_KIND as REPLAY
from nanoevolve_jax.evidence.card import read_card, record_path, with_replay
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.page import to_markdown
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.evolution.library import FOLDER, Library
from nanoevolve_jax.execution.job import Job, job_from_json
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.machine import Facts
from nanoevolve_jax.execution.plain_files import write_whole
from nanoevolve_jax.execution.settings import check_fields, corpus_here, received
from nanoevolve_jax.site import local_site
from nanoevolve_jax.terminal.console import Console

_PAIRS = flags.DEFINE_integer("pairs", 1, "pairs of the confirmation to run again", lower_bound=1)
DISAGREES = 1
_AS_ON_CARD = -1


class Recorded(NamedTuple):
    """What a card says of the pairs to run again."""

    jobs: list[Job]  # of the baseline, then of the winner
    bpb: np.ndarray  # float64[2, pairs]; NaN: the run failed
    paired_sigma: float  # bpb
    seeds: list[int]


def replay(settings: ConfigDict, path: Path, pairs: int, console: Console) -> bool:
    """Trains the first pairs again, compares, and records the result beside the card.

    On the devices and versions of the card the figures must be equal; elsewhere a pair's gain may
    differ by three paired sigmas.

    Args:
      settings: Fields of `configs.base.REPLAY_SETTINGS`.
      path: Path of the card.
      pairs: Number of pairs; at most all of the card's are run.
      console: Takes lines for the user.

    Raises:
      EvidenceError: if the card cannot be used, or the text is not the one it was made with.
      ConfigError: if a field of its config is invalid, or its text is not found on this machine.
      CertificateError: if the code of an arm is not in its run folder, was changed, or is refused
        where this machine has not validated it before.
    """
    card = read_card(path)
    if card["confirmation"] is None:
        raise EvidenceError(f"{path} holds no comparison; allowed: a card with a confirmation")
    config = _config_of(card, settings, path)
    recorded = _recorded(card, config, path, pairs)
    codes = [job.candidate.code for job in recorded.jobs]
    plugins.require_validated(codes, config.codegen.isolation)
    site = local_site(config, console, steps=config.confirm.steps, most=1)
    _require_text(card, site.facts, path)
    results = site.engine(site.config, MAIN).run(recorded.jobs)
    found = np.array([result.val_bpb for result in results]).reshape(recorded.bpb.shape)
    gains = recorded.bpb[0] - recorded.bpb[1], found[0] - found[1]
    for seed, before, now in zip(recorded.seeds, *gains, strict=True):
        console.print_line(f"seed {seed}: gain {before:+.6f} bpb on the card, {now:+.6f} now")
    exact = _is_exact(card, site.config, site.facts)
    limit = 0.0 if exact else 3.0 * recorded.paired_sigma
    agree = agrees(recorded.bpb, found, limit)
    how = "exactly" if exact else "within three paired sigmas (other versions or devices)"
    console.print_line(f"{'agrees' if agree else 'DISAGREES'} {how}")
    result = {
        "card": card["seal"],
        "id": card["id"],
        "agrees": agree,
        "exact": exact,
        "limit": limit,
        "seeds": recorded.seeds,
        "baseline_bpb": found[0],
        "winner_bpb": found[1],
        "versions": site.facts.versions,
        "device": site.facts.device,
        "lanes": site.facts.lanes,
        "data_parallel": site.facts.data_parallel,
    }
    _keep(path, card, finite_or_null(result), console)
    return agree


def _config_of(card: dict[str, Any], settings: ConfigDict, path: Path) -> ConfigDict:
    """The config to run a card with: what decides results from the card, the rest from here."""
    config = received(card["config"], settings, str(path))
    config.data.corpus = corpus_here(
        *(config.data.corpus, settings.data.corpus, config.data.cache_dir),
        *(card["fingerprints"].get("corpus"), "data.corpus", str(path)),
    )
    for name in ("lanes", "data_parallel"):
        if settings[name] != _AS_ON_CARD:
            config[name] = settings[name]
    return config


def _recorded(card: dict[str, Any], config: ConfigDict, path: Path, pairs: int) -> Recorded:
    """The first pairs of a card.

    Raises:
      EvidenceError: if it holds none, or names a fold or a recipe that does not exist.
    """
    confirmation, seeds = card["confirmation"], card["seeds"][:pairs]
    if not seeds:
        raise EvidenceError(
            f"{path} must hold pairs of runs, got none because {confirmation['reason']}"
        )
    if card["fold"] >= config.data.folds:
        raise EvidenceError(
            f"{path}: fold must be below config.data.folds, {config.data.folds}, got {card['fold']}"
        )
    code = Library(path.resolve().parent.parent / FOLDER)  # of the run folder with the card
    common = {"steps": config.confirm.steps, "fold": card["fold"]}
    common |= {"attempt": 0, "gate": None, "disturbance": None}
    arms = ("baseline", "winner")
    try:
        jobs = [
            job_from_json({"candidate": card["arms"][arm], "seed": seed} | common, code.get)
            for arm in arms
            for seed in seeds
        ]
    except TypeError as error:
        raise EvidenceError(f"{path}: the recipe of an arm must be a recipe: {error}") from None
    bpb = np.array([confirmation[f"{arm}_bpb"] for arm in arms], np.float64)  # null becomes NaN
    return Recorded(jobs, bpb[:, : len(seeds)], card["calibration"]["paired_sigma"], seeds)


def _require_text(card: dict[str, Any], facts: Facts, path: Path) -> None:
    """Refuses another text than that of the card.

    Raises:
      EvidenceError: naming both fingerprints.
    """
    now = {"corpus": facts.corpus, "tokenizer": facts.tokenizer}
    for name, fingerprint in now.items():
        if (before := card["fingerprints"].get(name)) != fingerprint:
            raise EvidenceError(
                f"{path} was made with {name} {before} and this is {fingerprint}; "
                f"allowed: the same {name}"
            )


def _is_exact(card: dict[str, Any], config: ConfigDict, facts: Facts) -> bool:
    """Whether every bit must be as on the card."""
    same = (facts.versions, facts.device) == (card["versions"], card["device"])
    return same and all(
        card["config"].get(name, config[name]) == config[name]
        for name in ("lanes", "data_parallel")
    )


def _keep(path: Path, card: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    """Writes the record of a replay, and the page of its card anew, if there is one."""
    target, page = record_path(path), path.with_suffix(".md")
    shown = page.is_file() and _is_page_of(card, page)
    try:
        record = write_sealed(target, REPLAY, result)
        if shown:
            write_whole(page, to_markdown(with_replay(card, record)))
    except OSError as error:
        line = f"{target} cannot be written ({error.strerror}): no level counts this replay"
    else:
        line = f"{target}: the record of this replay"
    console.print_line(line)


def _is_page_of(card: dict[str, Any], page: Path) -> bool:
    """Whether a file is the page of a card, which may be written anew."""
    try:
        title = to_markdown(card).partition("\n")[0]
        return page.read_bytes().startswith(f"{title}\n".encode())
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return False  # a card that has no page


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
    return bool(np.array_equal(np.isnan(before), np.isnan(found)) and not np.any(off > limit))


def main(settings: ConfigDict, arguments: list[str]) -> int:
    """The command; gives the exit code."""
    if len(arguments) != 1:
        command.fail(f"{len(arguments)} arguments; allowed: one evidence card, evidence/<id>.json")
    return 0 if replay(settings, Path(arguments[0]), _PAIRS.value, Console()) else DISAGREES


def check(settings: ConfigDict) -> None:
    """Checks the fields of a replay."""
    check_fields(settings, REPLAY_SETTINGS)


if __name__ == "__main__":
    command.run(
        main,
        config_file="configs/replay.py",
        settings=REPLAY_SETTINGS,
        validate=check,
        arguments=True,
        often=("data.corpus", "data.cache_dir", "devices", "lanes"),
    )
