"""What a run folder knows of a policy that somebody wants to take home."""

import math
from typing import Any

from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.execution.settings import make_recipe, with_recipe
from nanoevolve_jax.exports.origin import Compared, Origin
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.words import lineage_in_one_line


def origin_of(history: History, record: Record) -> Origin:
    """Where a candidate comes from, what it reached, and what is claimed of it."""
    baseline, card = history.baseline, history.cards.get(record.id)
    known = dict(zip(baseline.seeds, baseline.val_bpb, strict=True))
    shared = [seed for seed in record.seeds if seed in known]
    own = dict(zip(record.seeds, record.val_bpb, strict=True))
    origin = Origin(
        id=record.id,
        lineage=lineage_in_one_line(history.records, record.id),
        val_bpb=_mean([own[seed] for seed in shared]),
        seeds=len(shared),
        reference=Compared(
            id=baseline.id,
            tuned=history.config.calibration != UNCALIBRATED,
            val_bpb=_mean([known[seed] for seed in shared]),
        ),
        trained_with=trained_with(history, record),
    )
    if card is None:
        return origin
    return origin._replace(claim=sentence(card).rstrip("."), level=card["level"]["level"])


def trained_with(history: History, record: Record) -> dict[str, Any]:
    """The recipe of a candidate's screening run, as it was applied.

    Learning rates are peaks and, like the weight decay at step 0, already scaled to the run's
    batch, width and horizon. Fractions are of the horizon.
    """
    config = with_recipe(history.config, dict(record.recipe or {}))
    return {
        "corpus": config.data.corpus.partition(":")[0],  # without the place of its files
        "steps": config.train.steps,
        "batch_tokens": config.train.batch_size * config.model.sequence_len,
        "width": config.model.n_embd,
        "layers": config.model.n_layer,
        "momentum": record.spec.momentum,
        "second_moment_beta": record.spec.second_moment_beta,
        **{name: float(value) for name, value in make_recipe(config)._asdict().items()},
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
