"""Repeats pairs of a confirmation from its evidence card and reports whether results agree.

  python -m nanoevolve_jax.replay runs/mine/evidence/g003c04.json --pairs=1
  python -m nanoevolve_jax.replay card.json --config.data.corpus=parquet:DIR

The card determines the training, and the fields below describe this machine. If the text is a
folder that this machine has used before, it is found automatically. The result is written beside
the card and counts for level 5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from nanoevolve_jax import command, plugins
from nanoevolve_jax.configs.base import REPLAY_SETTINGS
from nanoevolve_jax.evidence.page import to_markdown
from nanoevolve_jax.evidence.replay import (
    KIND,
    ReplayDocument,
    agrees,
    is_exact,
    read_confirmed_card,
    record_path,
    recorded_pairs,
    require_text,
    with_replay,
)
from nanoevolve_jax.evidence.runs import MAIN
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evolution.library import FOLDER, Library
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.plain_files import write_whole
from nanoevolve_jax.execution.settings import check_fields, corpus_here, received
from nanoevolve_jax.site import local_site
from nanoevolve_jax.terminal.console import Console

_PAIRS = flags.DEFINE_integer("pairs", 1, "pairs of the confirmation to run again", lower_bound=1)
DISAGREES = 1
_AS_ON_CARD = -1


def replay(settings: ConfigDict, path: Path, pairs: int, console: Console) -> bool:
    """Repeats the first pairs of a confirmation and records the comparison beside the card.

    With the devices and versions of the card, the results must be equal. Otherwise the gain of a
    pair may differ by up to three paired sigmas.

    Args:
      settings: Config with the fields of `configs.base.REPLAY_SETTINGS`.
      path: Path of the card.
      pairs: Number of pairs to repeat, limited to the number of pairs on the card.
      console: Console that prints the results.

    Returns:
      True if the results agree.

    Raises:
      EvidenceError: If the card cannot be used, or the text differs from the text of the card.
      ConfigError: If a field of the card's config is invalid, or its text is not found on this
        machine.
      CertificateError: If the code of an arm is missing from the run folder, was changed, or fails
        validation on this machine.
    """
    card = read_confirmed_card(path)
    config = config_of(card, settings, path)
    code = Library(path.resolve().parent.parent / FOLDER)  # in the card's run folder
    recorded = recorded_pairs(card, config, path, pairs, code.get)
    codes = [job.candidate.code for job in recorded.jobs]
    plugins.require_validated(codes, config.codegen.isolation)
    site = local_site(config, console, steps=config.confirm.steps, most=1)
    facts = site.facts
    require_text(card, facts, path)
    results = site.engine(site.config, MAIN).run(recorded.jobs)
    bpb = np.array([result.val_bpb for result in results]).reshape(recorded.bpb.shape)
    gains = recorded.bpb[0] - recorded.bpb[1], bpb[0] - bpb[1]
    for seed, before, now in zip(recorded.seeds, *gains, strict=True):
        console.print_line(f"seed {seed}: gain {before:+.6f} bpb on the card, {now:+.6f} now")
    exact = is_exact(card, site.config, facts)
    limit = 0.0 if exact else 3.0 * recorded.paired_sigma
    agree = agrees(recorded.bpb, bpb, limit)
    how = "exactly" if exact else "within three paired sigmas (other versions or devices)"
    console.print_line(f"{'agrees' if agree else 'DISAGREES'} {how}")
    record = ReplayDocument(
        card=card["seal"],
        id=card["id"],
        agrees=agree,
        exact=exact,
        limit=limit,
        seeds=recorded.seeds,
        baseline_bpb=finite_or_null(bpb[0]),
        winner_bpb=finite_or_null(bpb[1]),
        versions=facts.versions,
        device=facts.device,
        lanes=facts.lanes,
        data_parallel=facts.data_parallel,
    )
    keep(path, card, record, console)
    return agree


def config_of(card: Mapping[str, Any], settings: ConfigDict, path: Path) -> ConfigDict:
    """Returns the config of a replay.

    Fields that determine results come from the card. Paths come from this machine.

    Args:
      card: Evidence card of a confirmation.
      settings: Config with the fields of `configs.base.REPLAY_SETTINGS`.
      path: Path of the card, for error messages.

    Raises:
      ConfigError: If a field of the card's config is invalid, or its text is not found on this
        machine.
    """
    config = received(card["config"], settings, str(path))
    config.data.corpus = corpus_here(
        *(config.data.corpus, settings.data.corpus, config.data.cache_dir),
        *(card["fingerprints"].get("corpus"), "data.corpus", str(path)),
    )
    for name in ("lanes", "data_parallel"):
        if settings[name] != _AS_ON_CARD:
            config[name] = settings[name]
    return config


def keep(path: Path, card: Mapping[str, Any], record: ReplayDocument, console: Console) -> None:
    """Writes the record of a replay and updates the page of its card if there is one.

    Args:
      path: Path of the card.
      card: Evidence card of a confirmation.
      record: Record of the replay.
      console: Console that prints the path of the record, or why it cannot be written.
    """
    target, page = record_path(path), path.with_suffix(".md")
    shown = page.is_file() and _is_page_of(card, page)
    try:
        written = write_sealed(target, KIND, dict(record))
        if shown:
            write_whole(page, to_markdown(with_replay(card, written)))
    except OSError as error:
        line = f"{target} cannot be written ({error.strerror}): no level counts this replay"
    else:
        line = f"{target}: the record of this replay"
    console.print_line(line)


def _is_page_of(card: Mapping[str, Any], page: Path) -> bool:
    """Returns whether a file is the page of a card, so that it may be overwritten."""
    try:
        title = to_markdown(card).partition("\n")[0]
        return page.read_bytes().startswith(f"{title}\n".encode())
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return False  # the page cannot be read, or the card cannot be rendered


def main(settings: ConfigDict, arguments: list[str]) -> int:
    """Runs the command and returns its exit code, which is 1 if the results do not agree.

    Args:
      settings: Config with the fields of `configs.base.REPLAY_SETTINGS`.
      arguments: Positional arguments, which must be the path of one evidence card.
    """
    if len(arguments) != 1:
        command.fail(
            f"arguments must be one evidence card, such as evidence/g003c04.json, "
            f"got {len(arguments)} of them"
        )
    return 0 if replay(settings, Path(arguments[0]), _PAIRS.value, Console()) else DISAGREES


if __name__ == "__main__":
    command.run(
        main,
        config_file="configs/replay.py",
        settings=REPLAY_SETTINGS,
        validate=lambda settings: check_fields(settings, REPLAY_SETTINGS),
        arguments=True,
        often=("data.corpus", "data.cache_dir", "devices", "lanes"),
    )
