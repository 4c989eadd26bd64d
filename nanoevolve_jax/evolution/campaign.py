"""A whole search: generations proposed, trained, scored and kept."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.evidence.score import Scale, instability, pareto_front, score
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD, Stage, stage_seed
from nanoevolve_jax.evidence.trajectories import save_telemetry
from nanoevolve_jax.evidence.work import Call, call
from nanoevolve_jax.evolution import archive, tournament
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.library import code_of
from nanoevolve_jax.execution.cost import step_flops
from nanoevolve_jax.execution.engine import ClusterError, Engine, Progress, named
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.results import LOST, RunResult
from nanoevolve_jax.execution.settings import (
    ConfigError,
    make_baseline,
    make_recipe,
    with_recipe,
)
from nanoevolve_jax.execution.train import TELEMETRY, Candidate
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.slots import is_read
from nanoevolve_jax.policy.spec import NANOCHAT, OptimizerSpec

ARCHIVE = "archive.jsonl"
SCREENING = "search: screening"  # stage of these runs, beside those of `runs.jsonl`


class Campaign(NamedTuple):
    """What a search is run with."""

    engine: Engine
    config: ConfigDict  # its recipe is the calibrated one, if there is a calibration
    folder: Path
    scale: Scale

    @property
    def seed(self) -> int:
        """Of every screening run: same initial weights, same batches."""
        return stage_seed(Stage.SCREEN, self.config.seed, 0)

    def load(self, log: Callable[[str], None]) -> list[Record]:
        """The records of all complete generations; `say` hears of what is cut off.

        Raises:
          ArchiveError: if one is not of the generation that its place in the archive stands for.
        """
        first, later = generation_sizes(self.config)
        records = archive.load(self.folder / ARCHIVE, [first, later], log)
        for place, record in enumerate(records):
            due = 0 if place < first else 1 + (place - first) // later
            if record.generation != due:
                raise ArchiveError(
                    f"{self.folder / ARCHIVE} line {place + 1} is damaged: generation of "
                    f"{record.id!r} must be {due}, got {record.generation}"
                )
        return records

    def generations(
        self, records: list[Record], on_progress: Callable[[Progress], None]
    ) -> Iterator[tuple[int, list[Record]]]:
        """Runs what these records lack; yields (generation, all records so far) after each one."""
        require_baseline(records)
        done = records[-1].generation if records else -1
        for generation in range(done + 1, self.config.search.generations + 1):
            proposals = self.propose(records, generation)
            jobs = [self.job(proposal) for proposal in proposals]
            names = {job.key: p.id for job, p in zip(jobs, proposals, strict=True)}
            fresh: list[Record] = []
            with contextlib.closing(self.engine.run(jobs, named(on_progress, names))) as results:
                for proposal, result in zip(proposals, results, strict=True):
                    columns = dict(zip(TELEMETRY, result.telemetry.T, strict=True))
                    kept = telemetry_columns(columns, result.curve)
                    save_telemetry(self.folder, proposal.id, kept)
                    baseline = (records + fresh)[0] if records or fresh else None
                    losses = result.telemetry[:, TELEMETRY.index("loss")]
                    shake = instability(losses) if result.failure is None else float("nan")
                    fresh.append(self.judge(proposal, result, shake, baseline))
            fresh = tournament.settle(records, fresh, self.config.search.survivors)
            archive.append(self.folder / ARCHIVE, fresh)
            records = [*records, *fresh]
            require_baseline(records)
            yield generation, records

    def job(self, proposal: tournament.Proposal) -> Job:
        """The screening run of a candidate."""
        recipe = make_recipe(with_recipe(self.config, proposal.recipe or {}))
        candidate = Candidate(proposal.spec, recipe, code_of(self.folder, proposal.code))
        return Job(candidate, self.seed, self.config.train.steps, SCREEN_FOLD)

    def propose(self, records: list[Record], generation: int) -> list[tournament.Proposal]:
        """The candidates of one generation."""
        if generation == 0:
            return tournament.founders(make_baseline(self.config))
        search = self.config.search
        return tournament.children(
            records,
            self.config.recipe.to_dict(),
            generation=generation,
            seed=self.config.seed,
            population=search.population,
            parents=search.survivors,
            tournament=search.tournament,
            control_every=search.control_every,
        )

    def judge(
        self,
        proposal: tournament.Proposal,
        result: RunResult | Run,
        shake: float,
        baseline: Record | None,
    ) -> Record:
        """Turns a training run into a record; the first one judged is the baseline.

        Args:
          proposal: what was trained.
          result: what that gave.
          shake: its instability in nats, NaN if it failed.
          baseline: None: this is it.
        """
        failure = result.failure and {"reason": result.failure, "step": result.failed_step}
        code = code_of(self.folder, proposal.code)
        cost = step_flops(self.engine.task, proposal.spec, code)
        gain = baseline.val_bpb[0] - result.val_bpb if baseline else 0.0
        return Record(
            **proposal._asdict(),
            status="",
            failure=failure,
            stage="screen",
            seeds=[self.seed],
            val_bpb=[result.val_bpb],
            train_loss=[result.train_loss],
            steps=[result.steps],
            instability=[shake],
            score=score([gain], cost, baseline.cost if baseline else cost, self.scale),
            cost=cost,
            pareto=False,
        )


def require_baseline(records: list[Record]) -> None:
    """Refuses a recipe under which the baseline fails: there is nothing to compare with.

    Raises:
      ConfigError: if the first record has failed.
      ClusterError: if no machine could train it.
    """
    failure = records[0].failure if records else None
    if failure is not None and failure["reason"].startswith(LOST):
        raise ClusterError(f"the baseline was {failure['reason']}; choose a new workdir")
    if failure is not None:
        raise ConfigError(
            f"config.recipe must train the baseline, got {failure['reason']} at step "
            f"{failure['step']}; try lower learning rates"
        )


def telemetry_columns(columns: Mapping[str, np.ndarray], curve: Any) -> dict[str, np.ndarray]:
    """A candidate's telemetry as it is kept.

    Args:
      columns: [steps] each, named as in `TELEMETRY`.
      curve: [points, 2]: step, validation bpb.

    Returns:
      Sensors, gate, actuators, loss and gradient norm by step; and the validation curve.
    """
    points = np.asarray(curve, np.float64).reshape(-1, 2)
    others = {name: column for name, column in columns.items() if name != "log_grad_norm"}
    return others | {
        "grad_norm": np.exp(columns["log_grad_norm"]),
        "validation_step": points[:, 0].astype(np.int64),
        "validation_bpb": points[:, 1],
    }


def generation_sizes(config: ConfigDict) -> list[int]:
    """Candidates in generation 0 and in every later one."""
    return [len(tournament.founders(NANOCHAT)), config.search.population]


def identity(
    spec: OptimizerSpec, recipe: dict[str, float] | None, code: dict[str, Any] | None
) -> tuple[Any, ...]:
    """What candidates share that would be trained alike.

    Rewritten functions may read fields of a spec that nothing else reads, so under them equal specs
    alone count as equal.
    """
    computation = code["computation"] if code else {}
    used = tuple(sorted((slot, x) for slot, x in computation.items() if is_read(slot, spec)))
    form = spec if used else canonical(spec)
    return form, tuple((recipe or {}).items()), used


def planned_calls(config: ConfigDict) -> list[Call]:
    """What screening asks of the engine: a call a generation."""
    first, later = generation_sizes(config)
    sizes = [first, *[later] * config.search.generations]
    return [call(SCREENING, size, config.train.steps) for size in sizes]


def screening_spent(records: list[Record], batch_tokens: float) -> dict[str, int]:
    """Runs, failed runs and tokens of screening, as `Runs.spent` counts those of other stages."""
    failed = [not math.isfinite(record.val_bpb[0]) for record in records]
    steps = sum(r.steps[0] + bad for r, bad in zip(records, failed, strict=True))
    return {"runs": len(records), "failed": sum(failed), "tokens": int(batch_tokens * steps)}


def summarise(records: list[Record], batch_tokens: float) -> dict[str, Any]:
    """The part of `summary.json` that follows from the archive alone."""
    baseline = records[0]
    best = tournament.survivors(records, 1)[0]
    distinct = {identity(r.spec, r.recipe, r.code) for r in records}
    return {
        "candidates": len(distinct),
        "evaluated": sum(record.failure is None for record in records),
        "dead": sum(record.failure is not None for record in records),
        "generations": records[-1].generation,
        "baseline_val_bpb": baseline.merit.val_bpb,
        "best": {
            "id": best.id,
            "stage": "screen",  # one run on one seed, whatever promotion brought since
            "val_bpb": best.merit.val_bpb,
            "delta_bpb": best.merit.val_bpb - baseline.merit.val_bpb,
        },
        "pareto": pareto_front({record.id: record.merit for record in records}),
        "winners": [record.id for record in records if record.status == "winner"],
        "training_runs": sum(len(record.seeds) for record in records),
        "tokens_trained": int(batch_tokens * sum(sum(record.steps) for record in records)),
    }
