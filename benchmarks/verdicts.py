"""Runs cases with a known answer on the real GPT and compares their labels with the answers.

  python -m benchmarks.verdicts --out=results/verdicts.json

The model has two layers of width 32 and trains for 100 steps on real text.

The null search runs the commands `calibrate`, `search` and `confirm` with five generations of eight
candidates. Every policy is equivalent to the baseline and trains on its own seeds.

The other cases compare two arms with the code of `confirm`: noise from the baseline's runs, a
learning rate for each arm, two looks, placebos and perturbations.

- schedule: The recipe does not have a warm-down, and targets are random from 80 to 90 % of every
  run. The candidate's gate reads only the step and makes the first updates smaller.
- constants: The baseline does not orthogonalise. The candidate orthogonalises in part, with a gate
  that does not change.
- sensing: Targets are random for a tenth of every run, at a time that depends on the seed. The
  candidate's gate makes updates smaller while the loss rises.
- retuned: The baseline's learning rate is a quarter of the right value. The candidate differs only
  in a larger update multiplier.
"""

import contextlib
import json
import math
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from absl import app, logging
from ml_collections import ConfigDict
from rich.table import Table

from benchmarks import options
from benchmarks.recipe import RECIPE
from nanoevolve_jax import calibrate, confirm, search, site
from nanoevolve_jax.configs import confirm as confirm_config
from nanoevolve_jax.configs.screen import get_config
from nanoevolve_jax.data.rows import Rows
from nanoevolve_jax.evidence import card as cards
from nanoevolve_jax.evidence import trial
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.eligibility import is_retuned_baseline
from nanoevolve_jax.evidence.ledger import Confirmation
from nanoevolve_jax.evidence.runs import Runs, bpb
from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD, Stage, confirmation_seeds, stage_seed
from nanoevolve_jax.evidence.statistics import paired_test, seed_noise
from nanoevolve_jax.evidence.verdict import (
    CONSTANTS,
    SCHEDULE,
    SENSING,
    Unattributed,
    judge,
)
from nanoevolve_jax.evolution import archive, promotion, tournament
from nanoevolve_jax.execution.engine import LocalEngine
from nanoevolve_jax.execution.job import LABEL_NOISE, Disturbance, Job
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.machine import gather_facts, visible_cores
from nanoevolve_jax.policy.mutations import Mutation, describe_change
from nanoevolve_jax.policy.spec import ACTUATORS, NANOCHAT, Actuators, OptimizerSpec, Sensors
from nanoevolve_jax.site import load_rows
from nanoevolve_jax.terminal.console import Console

SETTINGS = {
    "model.n_layer": 2,
    "model.n_embd": 32,
    "model.n_head": 2,
    "model.n_kv_head": 2,
    "model.sequence_len": 64,
    "data.vocab_size": 512,
    "data.validation_rows": 32,
    "train.batch_size": 4,
    "train.steps": 100,
    "train.segment_steps": 25,
    "confirm.steps": 100,
    **RECIPE,
    # With a small learning rate of the embeddings, the matrices have more to learn.
    "recipe.embedding_lr": 0.3,
}
FOLD = 2  # validation fold of the confirmation
SEARCH = {"search.generations": 5, "search.control_every": 0, "calibrate.tuning_runs": 16}

STILL = Actuators(*(row.default for row in ACTUATORS))  # actuators of the baseline


def baseline_spec(config: ConfigDict) -> OptimizerSpec:
    """Returns NanoChat's policy with the momentum and second-moment decay of the config."""
    return NANOCHAT._replace(
        momentum=config.recipe.momentum, second_moment_beta=config.recipe.second_moment_beta
    )


def gated(
    spec: OptimizerSpec,
    coefficients: Mapping[str, float],
    bias: float,
    aggressive: Mapping[str, float],
    conservative: Mapping[str, float],
) -> OptimizerSpec:
    """Returns a spec with a steep gate between two poles.

    Args:
      spec: Spec without a gate.
      coefficients: Coefficients of the gate by sensor. Missing coefficients are 0.
      bias: Bias of the gate.
      aggressive: Actuators of the aggressive pole that differ from those of the baseline.
      conservative: Actuators of the conservative pole that differ from those of the baseline.
    """
    still = STILL._replace(second_moment_beta=spec.second_moment_beta)
    control = spec.control._replace(
        enabled=1,
        bias=bias,
        sharpness=10.0,
        ema_beta=0.95,
        coefficients=Sensors(*(coefficients.get(name, 0.0) for name in Sensors._fields)),
        aggressive=still._replace(**aggressive),
        conservative=still._replace(**conservative),
    )
    return spec._replace(control=control)


class CalendarBench(Bench):
    """Bench where targets are random for a tenth of every run, at a fixed time."""

    __slots__ = ()

    def start(self, seed: int) -> float:
        """Returns the start of the random targets as a fraction of the run."""
        del seed
        return 0.8

    def job(self, arm: Arm, seed: int, fold: int, steps: int = 0, **changes: Any) -> Job:
        """Returns the job of an arm, with random targets unless it has another disturbance.

        Args:
          arm: Arm to train.
          seed: Seed of the run.
          fold: Index of the validation fold.
          steps: Horizon, as for `Bench.job`.
          **changes: Further fields of the job.
        """
        job = super().job(arm, seed, fold, steps, **changes)
        if job.disturbance is not None:
            return job
        start = int(job.steps * self.start(seed))
        window = Disturbance(LABEL_NOISE, start, start + job.steps // 10, 1.0)
        return job._replace(disturbance=window)


class SurpriseBench(CalendarBench):
    """Bench where the time of the random targets depends on the seed of the run."""

    __slots__ = ()

    def start(self, seed: int) -> float:
        """Returns the start of the random targets as a fraction of the run."""
        return np.random.default_rng([seed, 7]).uniform(0.4, 0.9)


class Case(NamedTuple):
    """Two arms and the expected label of their comparison."""

    expected: str  # expected label
    bench: type[Bench]  # bench that makes the jobs
    recipe: dict[str, float]  # changes for both arms; `matrix_lr` is a factor
    # Function from the spec of the baseline to the specs of the two arms, baseline and candidate.
    arms: Callable[[OptimizerSpec], tuple[OptimizerSpec, OptimizerSpec]]


def _schedule(spec: OptimizerSpec) -> tuple[OptimizerSpec, OptimizerSpec]:
    return spec, gated(spec, {"step_fraction": -2.0}, 0.4, {}, {"update_multiplier": 0.1})


def _constants(spec: OptimizerSpec) -> tuple[OptimizerSpec, OptimizerSpec]:
    half = {"orthogonal_mix": 0.5}
    return spec._replace(orthogonalize=0), gated(spec, {}, 0.1, half, {})


def _sensing(spec: OptimizerSpec) -> tuple[OptimizerSpec, OptimizerSpec]:
    worse = {"loss_improvement_ema": -2.0}
    return spec, gated(spec, worse, 0.5, {}, {"update_multiplier": 0.1})


def _retuned(spec: OptimizerSpec) -> tuple[OptimizerSpec, OptimizerSpec]:
    return spec, spec._replace(update_multiplier=4.0)


CASES = {
    "schedule": Case(
        SCHEDULE,
        CalendarBench,
        # The learning rate is near its optimum, so the noise is that of a tuned baseline.
        {"matrix_lr": 2.8, "warmdown_fraction": 0.0, "final_lr_fraction": 1.0},
        _schedule,
    ),
    "constants": Case(CONSTANTS, Bench, {}, _constants),
    "sensing": Case(SENSING, SurpriseBench, {}, _sensing),
    "retuned": Case(Unattributed.RETUNED.value, Bench, {"matrix_lr": 0.25}, _retuned),
}


def make_config(changes: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of all cases with some fields changed.

    Args:
      changes: New values by dotted path.
    """
    config = get_config()
    config.update_from_flattened_dict(SETTINGS | dict(changes))
    return config


def measure_noise(bench: Bench, arm: Arm) -> Calibration:
    """Returns a calibration that holds only the noise of the baseline.

    Args:
      bench: Bench that trains the runs.
      arm: Baseline.
    """
    config = bench.config
    near = arm._replace(spec=arm.spec._replace(update_multiplier=1.1 * arm.spec.update_multiplier))
    seeds = [stage_seed(Stage.NOISE, config.seed, i) for i in range(config.calibrate.seeds)]
    jobs = [bench.job(a, seed, SCREEN_FOLD) for a in (arm, near) for seed in seeds]
    noise = seed_noise(*bpb(bench.runs.run(jobs, "noise")).reshape(2, -1))
    return Calibration(
        path=Path(),
        fingerprint="",
        seal="",
        recipe=config.recipe.to_dict(),
        scale=Scale(noise.sigma, (noise.paired_sigma / noise.sigma) ** 2, 0.0),
        sigma=noise.sigma,
        sigma_interval=(noise.sigma_low, noise.sigma_high),
        paired_sigma=noise.paired_sigma,
        repeat_difference=0.0,
        panel_auc=math.nan,
        spent={},
    )


def compare(bench: Bench, winner: Arm, baseline: Arm, calibration: Calibration) -> trial.Trial:
    """Confirms and attributes a candidate with the code of the command `confirm`.

    Args:
      bench: Bench that trains the runs.
      winner: Candidate.
      baseline: Baseline.
      calibration: Calibration of the noise.
    """
    seeds = tuple(confirmation_seeds(Stage.CONFIRM, bench.config.seed, 0))
    protocol = trial.Protocol(
        slot=Confirmation(0, "", winner.id, FOLD, seeds, False, 1, None),
        calibration=calibration,
        until="attribute",
        log=logging.info,
    )
    return trial.run(bench, winner, [baseline], protocol)


def run_case(case: Case, rows: Rows, changes: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """Runs one case, from the measurement of noise to the verdict.

    Args:
      case: Case to run.
      rows: Packed rows of the corpus.
      changes: Values of the config that differ from those of all cases, by dotted path.
      devices: Number of devices.
    """
    config = make_config(changes)
    for name, value in case.recipe.items():
        relative = name == "matrix_lr"
        config.recipe[name] = value * config.recipe[name] if relative else value
    facts = gather_facts(rows.fingerprints, devices, config.lanes, config.data_parallel)
    place = site.LocalSite(config, facts, rows)
    with tempfile.TemporaryDirectory() as folder:
        bench = case.bench(config, Runs(Path(folder), site.engines(place, config)))
        specs = case.arms(baseline_spec(config))
        baseline, winner = Arm("baseline", specs[0], {}), Arm("candidate", specs[1], {})
        retuned = is_retuned_baseline(winner.spec, baseline.spec)
        outcome = compare(bench, winner, baseline, measure_noise(bench, baseline))
        verdict = judge(Unattributed.RETUNED) if retuned else outcome.verdict
        seeds = [stage_seed(Stage.CONFIRM, config.seed, i) for i in range(config.confirm.seeds)]
        jobs = [bench.job(arm, seed, FOLD) for arm in (baseline, winner) for seed in seeds]
        as_given = bpb(bench.runs.run(jobs, "as given")).reshape(2, -1)
        spent = bench.runs.spent()
    return {
        "expected": case.expected,
        "found": verdict.label,
        "before_tuning": finite_or_null(paired_test(as_given[0] - as_given[1])),
        "confirmation": outcome.parts["confirmation"],
        "attribution": outcome.parts["attribution"],
        "spent": spent,
    }


def disguised(spec: OptimizerSpec, rng: np.random.Generator) -> OptimizerSpec:
    """Returns the baseline with a gate that changes the update multiplier by at most a millionth.

    Args:
      spec: Spec of the baseline.
      rng: Generator of the random bias.
    """
    nearly = {"update_multiplier": 1.0 + 1e-6}
    return gated(spec, {"loss_ema": 1.0}, float(rng.uniform(-1.0, 1.0)), nearly, {})


@contextlib.contextmanager
def null_world(devices: int, ledger: Path) -> Iterator[None]:
    """Replaces every policy in the block by one that is equivalent to the baseline.

    Each policy trains on its own seeds, which depend on the bias of its gate. On shared seeds, all
    policies would have equal results, so the search could not select one by chance. The block also
    has its own ledger, so that a repeated benchmark does not use up the folds of an evaluation.

    Args:
      devices: Number of devices.
      ledger: Path of the ledger.
    """
    train = LocalEngine.run

    def own_seed(job: Job) -> Job:
        control = job.candidate.spec.control
        if not control.enabled:
            return job
        name = zlib.crc32(np.float32(control.bias).tobytes())
        mixed = np.random.SeedSequence([job.seed, name])
        return job._replace(seed=int(mixed.generate_state(1)[0]))

    def presets(baseline: OptimizerSpec) -> dict[str, OptimizerSpec]:
        copy = disguised(baseline, np.random.default_rng(0))
        return {tournament.BASELINE_ID: baseline, "twin": copy}

    def mutate(spec: OptimizerSpec, rng: np.random.Generator, seen: object) -> Mutation:
        del seen
        child = disguised(spec._replace(control=NANOCHAT.control), rng)
        return Mutation(child, "disguise", describe_change(spec, child) or "none")

    replaced = {
        (LocalEngine, "run"): lambda self, jobs, *rest: train(self, [*map(own_seed, jobs)], *rest),
        (tournament, "presets_on"): presets,
        (tournament, "mutate"): mutate,
    }
    replaced[promotion, "ledger_path"] = lambda cache, fingerprint: ledger
    replaced[site, "use_devices"] = lambda config: devices
    with contextlib.ExitStack() as stack:
        for (owner, name), value in replaced.items():
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def run_null_search(changes: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """Runs `calibrate`, `search` and `confirm` on policies that are equally good.

    Args:
      changes: Values of the config that differ from those of all cases, by dotted path.
      devices: Number of devices.
    """
    with tempfile.TemporaryDirectory() as name, null_world(devices, Path(name) / "ledger.jsonl"):
        folder = Path(name)
        config = make_config(SEARCH | dict(changes) | {"workdir": str(folder / "calibration")})
        calibrate.calibrate(config)
        config.calibration = str(folder / "calibration" / "calibration.json")
        config.workdir = str(folder / "search")
        search.search(config)
        settings = confirm_config.get_config()
        settings.workdir, settings.data.cache_dir = config.workdir, config.data.cache_dir
        settings.devices, settings.threads = config.devices, config.threads
        confirm.confirm(settings)
        picked = read_sealed(folder / "search" / promotion.FILE, promotion.KIND)
        path = folder / "search" / "evidence" / f"{picked['candidate']}.json"
        card = read_sealed(path, cards.KIND)
        records = archive.load_all(folder / "search" / "archive.jsonl")
        summary = json.loads((folder / "search" / "summary.json").read_text(encoding="utf-8"))
    gains = [records[0].val_bpb[0] - r.val_bpb[0] for r in records if r.recipe is None]
    return {
        "expected": Unattributed.NOT_CONFIRMED.value,
        "found": card["verdict"]["label"],
        "candidates": len(gains) - 1,
        "best_at_screening_in_sigma": max(gains) / card["calibration"]["sigma"],
        "winners": summary["winners"],
        "confirmation": card["confirmation"],
        "attribution": card["attribution"],
        "spent": card["spent"],
    }


def main(argv: list[str]) -> None:
    """Runs all cases, prints the labels and writes the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", visible_cores())
    devices, console = len(jax.devices()), Console(width=150)
    changes = {"data.cache_dir": options.CACHE.value}
    rows = load_rows(make_config(changes), console)
    results = {"null search": run_null_search(changes, devices)}
    for name, case in CASES.items():
        results[name] = run_case(case, rows, changes, devices)
        console.print(f"{name}: {results[name]['found']}", highlight=False)
    table = Table(title="Cases with a known answer, and their labels")
    for column in ("case", "label", "gain, sigma", "pairs", "p", "runs"):
        table.add_column(column)
    for name, result in results.items():
        confirmation = result["confirmation"]
        table.add_row(
            name,
            result["found"] + ("" if result["found"] == result["expected"] else " (WRONG)"),
            f"{confirmation['gain_in_sigma']:+.2f}",
            str(confirmation["pairs"]),
            f"{confirmation['test']['p']:.2g}",
            str(sum(stage["runs"] for stage in result["spent"].values())),
        )
    console.print(table)
    options.write(
        {
            "command": "python -m benchmarks.verdicts",
            "jax": jax.__version__,
            "settings": SETTINGS,
            "cases": results,
        }
    )


if __name__ == "__main__":
    app.run(main)
