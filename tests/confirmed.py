"""A simulated run folder of a calibrated search with a promotion and a confirmed winner.

The code that writes real documents also writes these. Only the training runs are simulated, by
formulas.
"""

import json
import shutil

import numpy as np
from benches import card_of, make_bench, make_trial
from histories import make_columns, save
from records import make_dead, make_record

from nanoevolve_jax.evidence.card import KIND as CARD
from nanoevolve_jax.evidence.runs import FILE as RUNS
from nanoevolve_jax.evidence.runs import to_document
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evidence.seeds import PROMOTE_FOLD, Stage, stage_seed
from nanoevolve_jax.evolution import archive, promotion
from nanoevolve_jax.execution import journal
from nanoevolve_jax.policy.spec import ANNEALING, Sensors, set_field

WINNER = "g002c00"
WEIGHTED = set_field(ANNEALING, "control.coefficients.grad_alignment_ema", 0.7)
SPEC = set_field(WEIGHTED, "control.coefficients.loss_improvement_ema", -0.4)
PRESET = {"operator": "preset", "change": "control.enabled off -> on", "status": "survivor"}
SEEDS = 9  # number of seeds in promotion
SIGMA = 0.01  # standard deviation of the noise


def bpb_of(job):
    """Returns the final bpb of a run; a policy gains 0.04, and less if its gate is replayed."""
    rng = np.random.default_rng([job.seed, job.candidate.spec.control.enabled, job.fold])
    gain = 0.04 * job.candidate.spec.control.enabled
    if job.gate is not None:
        gain *= 0.3 + 0.3 * (np.ptp(job.gate) > 0)
    return 2.2 - gain + rng.normal(0, SIGMA)


def columns_of(seed, steps):
    """Returns the telemetry of a run whose gate rises at its own pace."""
    rng = np.random.default_rng(seed)
    share = np.arange(steps) / steps
    sensed = {name: np.tanh(rng.normal(0, 0.1, steps).cumsum()) / 2 for name in Sensors._fields}
    sensed["step_fraction"] = share
    weights = SPEC.control.coefficients._asdict()
    drive = sum(weights[name] * values for name, values in sensed.items())
    gate = 1 / (1 + np.exp(-4 * (drive - 0.5)))
    return make_columns(gate, **sensed, loss=3 + np.exp(-5 * share), grad_norm=1 - share / 2)


def family():
    """Returns three generations that contain a failed candidate and a control."""
    weight = {"operator": "adjust_gate_weight", "change": "control.coefficients... -> ..."}
    survivor = {"status": "survivor", "generation": 1}
    of_gate = {"parent_id": "annealing", "spec": WEIGHTED, "bpb": 2.17, "score": 2.5}
    control = {"operator": "adjust_recipe", "recipe": {"momentum": 0.8}, "bpb": 2.21, "score": -1.0}
    scaled = {"operator": "scale_update_multiplier", "change": "update_multiplier 1.0 -> 3.0"}
    scaled |= {"spec": ANNEALING._replace(update_multiplier=3.0)}
    last = {"parent_id": "g001c00", "generation": 2}
    plain = {"operator": "toggle_<b>bold</b>", "change": "nesterov on -> off", "bpb": 2.3}
    plain |= {"spec": WEIGHTED._replace(nesterov=0), "score": -9.0}
    return [
        make_record(status="baseline", bpb=2.2, pareto=True),
        make_record("annealing", spec=ANNEALING, bpb=2.19, score=0.9, **PRESET),
        make_record("g001c00", **survivor, **of_gate, **weight),
        make_dead("g001c01", generation=1, status="dead", **scaled),
        make_record("g001c02", change="recipe.momentum 0.97 -> 0.8", **survivor, **control),
        make_record(WINNER, spec=SPEC, bpb=2.16, score=3.5, status="winner", **last, **weight),
        make_record("g002c01", **last, **plain),
    ]


def write(folder, repository):
    """Writes the run folder and returns its path."""
    bench = make_bench(bpb_of)
    bench.config.calibration = str(folder / "calibration.json")
    records = family()
    baseline, winner = records[0], records[5]
    (folder / "telemetry").mkdir(parents=True)
    shutil.copy(repository / "results" / "classics_cpu" / "calibration.json", folder)
    description = {"config": bench.config.to_dict(), "versions": {}, "device": {}}
    (folder / "config.json").write_text(json.dumps(description | {"fingerprints": {}}))
    for number, record in enumerate(records):
        if record.failure is None:
            curve = {
                "validation_step": [0, 50, 100],
                "validation_bpb": [3.6, 2.4, record.val_bpb[0]],
            }
            save(folder, record.id, columns_of(number, 100) | curve)
    promoted = {}
    for record in (baseline, winner):
        arm = promotion.arm_of(record, folder)
        jobs = [
            bench.job(arm, stage_seed(Stage.PROMOTE, 0, i), PROMOTE_FOLD, 100) for i in range(SEEDS)
        ]
        promoted[record.id] = promotion.with_runs(record, bench.runs.run(jobs, promotion.STAGE))
    archive.append(folder / "archive.jsonl", [promoted.get(r.id, r) for r in records])
    write_sealed(
        folder / promotion.FILE,
        promotion.KIND,
        {"candidate": WINNER, "comparator": baseline.id, "first_round": [WINNER, "g001c00"]},
    )
    arms = [promotion.arm_of(record, folder) for record in (winner, baseline)]
    tried, _ = make_trial(bench, *arms, until="transfer")
    (folder / "evidence").mkdir()
    write_sealed(folder / "evidence" / f"{WINNER}.json", CARD, card_of(tried, bench, *arms))
    trained = {}
    for job, stage in list(bench.runs.jobs):
        run = bench.runs.run([job], stage)[0]
        trained[run.key] = run
    journal.append(folder / RUNS, map(to_document, trained.values()))
    for run in trained.values():
        save(folder, run.key, columns_of(run.job["seed"], run.steps))
    summary = {"tokens_trained": 100, "training_runs": len(records), "wall_seconds": 12.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
