"""A bench whose runs need no training: each loss is a formula of the job."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from nanoevolve_jax.configs import screen
from nanoevolve_jax.evidence import trial
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.card import Origin, make_card
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.confirmation import Study
from nanoevolve_jax.evidence.ledger import Confirmation
from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evidence.seeds import Stage, confirmation_seeds
from nanoevolve_jax.execution.job import job_to_json
from nanoevolve_jax.execution.train import TELEMETRY
from nanoevolve_jax.policy.spec import NANOCHAT

AGREES = {"max_relative_l2": 1e-7, "flips": 0, "held": 0, "passes": True}
"""Result of an export that does what was trained."""


class FormulaRuns:
    """Replacement for `Runs` whose runs end at `bpb_of(job)`; NaN stands for a failed run."""

    def __init__(self, bpb_of, gate_of=lambda job: np.full(job.steps, 0.5)):
        self.bpb_of, self.gate_of = bpb_of, gate_of
        self.jobs = []  # (job, stage) pairs in the order in which they were requested
        self._made = {}

    def run(self, jobs, stage, program="main"):
        self.jobs += [(job, stage) for job in jobs]
        return [self._run(job, stage, program) for job in jobs]

    def _run(self, job, stage, program):
        bpb = float(self.bpb_of(job))
        failed = not np.isfinite(bpb)
        key = job.key
        self._made[key] = job
        return Run(
            key=key,
            stage=stage,
            program=program,
            job=job_to_json(job),
            val_bpb=bpb,
            train_loss=bpb,
            failure="loss is not finite" if failed else None,
            failed_step=job.steps // 2 if failed else None,
            steps=job.steps // 2 if failed else job.steps,
            tokens=job.steps,
            curve=[[0, 8.0], [job.steps, bpb]],
            instability=0.0,
        )

    def telemetry(self, run):
        job = self._made[run.key]
        columns = {name: np.zeros(run.steps) for name in TELEMETRY}
        return columns | {"gate": self.gate_of(job)[: run.steps]}

    def engine(self, program="main"):
        return SimpleNamespace(width=2)

    def spent(self):
        return {stage: {} for _, stage in self.jobs}

    def of(self, stage):
        """Returns the jobs of one stage."""
        return [job for job, asked in self.jobs if asked == stage]


def make_bench(bpb_of, *, gate_of=None, **changes):
    """Returns a bench of the default search with changed fields; `__` stands for a dot."""
    config = screen.get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    runs = FormulaRuns(bpb_of, gate_of) if gate_of else FormulaRuns(bpb_of)
    return Bench(config, runs)


def arm(name="candidate", spec=NANOCHAT):
    return Arm(name, spec, {})


def lr_factor(bench, job):
    """Returns the factor by which a job scales the calibrated matrix learning rate."""
    usual = bench.candidate(arm(), job.steps).recipe.matrix_lr
    return job.candidate.recipe.matrix_lr / usual


def make_calibration(sigma=0.01, **changes):
    """Returns a calibration that holds only its noise; the paired noise is half of sigma."""
    return Calibration(
        path=Path("calibration.json"),
        fingerprint="f00d",
        seal="5ea1",
        recipe={},
        scale=Scale(sigma, 0.25, 0.1),
        sigma=sigma,
        sigma_interval=(0.7 * sigma, 2.0 * sigma),
        paired_sigma=sigma / 2,
        repeat_difference=0.0,
        panel_auc=0.95,
        spent={},
    )._replace(**changes)


def make_slot(candidate="candidate", number=0, campaign=0, **changes):
    """Returns the slot that the ledger would assign to a confirmation."""
    seeds = tuple(confirmation_seeds(Stage.CONFIRM, campaign, number))
    first = Confirmation(number, "campaign", candidate, 2 + number, seeds, False, 1, None)
    return first._replace(**changes)


def make_study(bench, **changes):
    """Returns the study of a confirmation whose sigma is 0.01."""
    return Study(bench, make_slot(**changes), 0.01, lambda line: None)


def make_trial(bench, winner, *references, until="confirm", slot=None, **changes):
    """Runs a trial and returns it with the outcomes that were entered into the ledger."""
    outcomes = []
    protocol = trial.Protocol(
        slot=slot or make_slot(winner.id),
        calibration=make_calibration(),
        check_export=lambda arm: AGREES,
        until=until,
        on_outcome=outcomes.append,
        **changes,
    )
    return trial.run(bench, winner, references, protocol), outcomes


def card_of(tried, bench, winner, baseline):
    """Returns the evidence card of a trial."""
    origin = Origin(
        config=bench.config.to_dict(),
        campaigns=1,
        spent={"confirm: test": {"runs": 16, "failed": 0, "tokens": 1000}},
        commands=["python -m nanoevolve_jax.calibrate"],
        facts={"versions": {}, "device": {}, "fingerprints": {"corpus": "c0"}},
    )
    return make_card(tried, winner, baseline, make_calibration(), origin)
