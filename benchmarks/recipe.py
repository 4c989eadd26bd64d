"""A coarse look for a fair baseline recipe at the `:cpu` size.

  python -m benchmarks.recipe --out=results/recipe_cpu.json

NanoChat's transfer rules aim at its own batch of 2^19 tokens and a compute-optimal horizon; a run
of 100 steps of 1,024 tokens is far from both. One seed, a coarse grid: this finds a starting
point, not a calibrated baseline.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from rich.console import Console

from configs.base import get_config
from data.rows import build_rows
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.population import visible_cores
from nanoevolve_jax.execution.settings import make_recipe
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.policy.spec import NANOCHAT
from nanoevolve_jax.prepare import make_engine

_OUT = flags.DEFINE_string("out", "", "JSON file to write")
_CACHE = flags.DEFINE_string("cache", "cache", "folder of packed rows")

# Factors on NanoChat's own (matrix lr, all AdamW lrs but smear's, weight decay).
GRID = (
    [(1, 1, 1), (1, 1, 0), (4, 4, 0), (4, 16, 0), (16, 8, 0), (16, 16, 0), (16, 32, 0), (16, 64, 0)]
    + [(32, 8, 0), (32, 16, 0), (32, 24, 0), (32, 32, 0), (64, 16, 0), (64, 24, 0), (64, 32, 0)]
    + [(32, 24, d) for d in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)]
    + [(128, 24, 0), (128, 32, 0), (64, 24, 1 / 64), (64, 24, 1 / 32)]
)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", visible_cores())
    console = Console()
    config = get_config()
    config.train.evaluations = 1
    rows = build_rows(
        config.data.corpus,
        vocab_size=config.data.vocab_size,
        sequence_len=config.model.sequence_len,
        cache_dir=_CACHE.value,
    )
    engine = make_engine(config, rows, len(jax.devices()))
    start = make_recipe(config)
    jobs = []
    for matrix, adam, decay in GRID:
        recipe = start._replace(
            matrix_lr=start.matrix_lr * matrix,
            embedding_lr=start.embedding_lr * adam,
            unembedding_lr=start.unembedding_lr * adam,
            scalar_lr=start.scalar_lr * adam,
            weight_decay=start.weight_decay * decay,
        )
        jobs.append(Job(Candidate(NANOCHAT, recipe), config.seed, config.train.steps))
    found = []
    for point, result in zip(GRID, engine.run(jobs), strict=True):
        factors = dict(zip(("matrix_lr", "adamw_lr", "weight_decay"), point, strict=True))
        found.append(factors | {"val_bpb": result.val_bpb if result.failure is None else None})
        console.print(found[-1], highlight=False)
    if _OUT.value:
        document = {
            "command": "python -m benchmarks.recipe",
            "config": "configs/base.py",
            "seed": config.seed,
            "jax": jax.__version__,
            "factors_on_nanochat": found,
        }
        Path(_OUT.value).write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
