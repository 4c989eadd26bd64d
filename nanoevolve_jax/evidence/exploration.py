"""Given specs on shared seeds: what a look at them says, and nothing that counts as evidence.

They run on seeds of a stage of their own and on the fold that searches screen on, so that no look
can touch what promotion or a confirmation will be decided by.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.runs import Run, bpb
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD, Stage, stage_seed
from nanoevolve_jax.evidence.statistics import paired_test
from nanoevolve_jax.evidence.work import Call, call
from nanoevolve_jax.policy.spec_json import spec_to_json

STAGE = "compare"  # of `runs.jsonl`


def planned_calls(config: ConfigDict, specs: int) -> list[Call]:
    """What a comparison of so many specs asks of the engine."""
    return [call(STAGE, specs * config.compare.seeds, config.train.steps)]


def shared_seeds(config: ConfigDict) -> list[int]:
    """The seeds that every spec runs on; more of them begin with fewer."""
    return [stage_seed(Stage.COMPARE, config.seed, i) for i in range(config.compare.seeds)]


def explore(bench: Bench, arms: Sequence[Arm]) -> dict[str, Any]:
    """Trains every arm on the shared seeds, at the screening horizon.

    Returns:
      `specs`: each arm with its mean bpb (NaN: a run failed) and the failures of its runs by seed;
      all but the first with their `gain` over the first, the fields of a `PairedTest`. `bpb`:
      float64[arms, seeds].
    """
    seeds, steps = shared_seeds(bench.config), bench.config.train.steps
    jobs = [bench.job(arm, seed, SCREEN_FOLD, steps) for arm in arms for seed in seeds]
    made = bench.runs.run(jobs, STAGE)
    runs = [made[i : i + len(seeds)] for i in range(0, len(made), len(seeds))]
    values = np.stack([bpb(of_arm) for of_arm in runs])
    specs = [
        _arm(arm, of_arm)
        | ({} if i == 0 else {"gain": paired_test(values[0] - values[i])._asdict()})
        for i, (arm, of_arm) in enumerate(zip(arms, runs, strict=True))
    ]
    return {"specs": specs, "seeds": seeds, "fold": SCREEN_FOLD, "steps": steps, "bpb": values}


def _arm(arm: Arm, runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "id": arm.id,
        "spec": spec_to_json(arm.spec),
        "recipe": arm.recipe,
        "mean_bpb": float(bpb(runs).mean()),
        "failures": {str(run.job["seed"]): run.failure for run in runs if run.failure},
    }
