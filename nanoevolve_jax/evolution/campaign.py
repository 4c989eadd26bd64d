"""A search, which proposes, trains, scores and archives one generation of candidates at a time."""

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
SCREENING = "search: screening"  # stage of screening runs


class Campaign(NamedTuple):
    """A search in a run folder."""

    engine: Engine
    config: ConfigDict  # full configuration, including the calibrated recipe if there is one
    folder: Path  # run folder
    scale: Scale  # units of scores

    @property
    def seed(self) -> int:
        """Seed of all screening runs, which share initial weights and batches."""
        return stage_seed(Stage.SCREEN, self.config.seed, 0)

    def load(self, log: Callable[[str], None]) -> list[Record]:
        """Reads the complete generations of the archive and cuts off an incomplete one.

        Args:
          log: Callback that takes one line for the user.

        Returns:
          Records in order.

        Raises:
          ArchiveError: If a record's generation does not match its place in the archive.
        """
        first, later = generation_sizes(self.config)
        records = archive.load(self.folder / ARCHIVE, [first, later], log)
        for place, record in enumerate(records):
            expected = 0 if place < first else 1 + (place - first) // later
            if record.generation != expected:
                raise ArchiveError(
                    f"{self.folder / ARCHIVE} line {place + 1} is damaged: generation of "
                    f"{record.id!r} must be {expected}, got {record.generation}"
                )
        return records

    def generations(
        self, records: list[Record], on_progress: Callable[[Progress], None]
    ) -> Iterator[tuple[int, list[Record]]]:
        """Runs the missing generations by calling `ask`, `evaluate` and `tell` for each.

        Args:
          records: Records of the complete generations.
          on_progress: Callback that takes the progress of training.

        Yields:
          (number of the finished generation, all records up to this generation).

        Raises:
          ConfigError: If the baseline fails.
          ClusterError: If no machine could train the baseline.
        """
        require_baseline(records)
        finished = records[-1].generation if records else -1
        for generation in range(finished + 1, self.config.search.generations + 1):
            proposals = self.ask(records, generation)
            evaluated = self.evaluate(proposals, records, on_progress)
            records = self.tell(records, evaluated)
            require_baseline(records)
            yield generation, records

    def ask(self, records: list[Record], generation: int) -> list[tournament.Proposal]:
        """Returns the candidates of a generation.

        Args:
          records: Records of all earlier generations.
          generation: Number of the generation, from 0.
        """
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

    def evaluate(
        self,
        proposals: list[tournament.Proposal],
        records: list[Record],
        on_progress: Callable[[Progress], None],
    ) -> list[Record]:
        """Trains candidates and saves their telemetry.

        Args:
          proposals: Candidates to train.
          records: All earlier records, of which the first is the baseline.
          on_progress: Callback that takes the progress of training.

        Returns:
          Records of the candidates, without a status.
        """
        jobs = [self.job(proposal) for proposal in proposals]
        names = {job.key: p.id for job, p in zip(jobs, proposals, strict=True)}
        evaluated: list[Record] = []
        with contextlib.closing(self.engine.run(jobs, named(on_progress, names))) as results:
            for proposal, result in zip(proposals, results, strict=True):
                columns = dict(zip(TELEMETRY, result.telemetry.T, strict=True))
                save_telemetry(self.folder, proposal.id, telemetry_columns(columns, result.curve))
                rise = math.nan if result.failure else instability(columns["loss"])
                baseline = next(iter([*records, *evaluated]), None)
                evaluated.append(self.judge(proposal, result, rise, baseline))
        return evaluated

    def tell(self, records: list[Record], evaluated: list[Record]) -> list[Record]:
        """Selects survivors and appends a generation to the archive.

        Args:
          records: Records of all earlier generations.
          evaluated: Records of the new generation, without a status.

        Returns:
          All records, with a status.
        """
        settled = tournament.settle(records, evaluated, self.config.search.survivors)
        archive.append(self.folder / ARCHIVE, settled)
        return [*records, *settled]

    def job(self, proposal: tournament.Proposal | Record) -> Job:
        """Returns the job of a candidate's screening run."""
        recipe = make_recipe(with_recipe(self.config, proposal.recipe or {}))
        candidate = Candidate(proposal.spec, recipe, code_of(self.folder, proposal.code))
        return Job(candidate, self.seed, self.config.train.steps, SCREEN_FOLD)

    def judge(
        self,
        proposal: tournament.Proposal,
        result: RunResult | Run,
        rise: float,
        baseline: Record | None,
    ) -> Record:
        """Scores the screening run of a candidate.

        Args:
          proposal: Candidate that was trained.
          result: Result of its run.
          rise: Instability of the run, in nats; NaN if it failed.
          baseline: Record of the baseline, or None if the candidate is the baseline.

        Returns:
          Record of the candidate, without a status.
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
            instability=[rise],
            score=score([gain], cost, baseline.cost if baseline else cost, self.scale),
            cost=cost,
            pareto=False,
        )


def require_baseline(records: list[Record]) -> None:
    """Checks that the baseline has not failed, because all candidates are compared with it.

    Args:
      records: Records of a search, of which the first is the baseline.

    Raises:
      ConfigError: If the baseline has failed.
      ClusterError: If no machine could train it.
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
    """Returns the telemetry of a candidate in the form in which it is saved.

    Args:
      columns: Columns by name as in `TELEMETRY`; [steps] each.
      curve: Steps and validation bpb; [points, 2].

    Returns:
      Columns by name: sensors, gate, actuators, loss and gradient norm, [steps] each, and the two
      columns of the validation curve, [points] each.
    """
    points = np.asarray(curve, np.float64).reshape(-1, 2)
    others = {name: column for name, column in columns.items() if name != "log_grad_norm"}
    return others | {
        "grad_norm": np.exp(columns["log_grad_norm"]),
        "validation_step": points[:, 0].astype(np.int64),
        "validation_bpb": points[:, 1],
    }


def generation_sizes(config: ConfigDict) -> list[int]:
    """Returns the number of candidates in generation 0 and in each later generation."""
    return [len(tournament.founders(NANOCHAT)), config.search.population]


def identity(
    spec: OptimizerSpec, recipe: dict[str, float] | None, code: dict[str, Any] | None
) -> tuple[Any, ...]:
    """Returns a key that equivalent candidates share.

    Rewritten functions may use fields of a spec that the built-in functions ignore. Candidates with
    rewritten functions are therefore equivalent only if their specs are equal.

    Args:
      spec: Policy of concrete numbers.
      recipe: Overrides of the recipe, or None.
      code: Field `code` of the record, or None.
    """
    computation = code["computation"] if code else {}
    used = tuple(sorted((slot, x) for slot, x in computation.items() if is_read(slot, spec)))
    form = spec if used else canonical(spec)
    return form, tuple((recipe or {}).items()), used


def planned_calls(config: ConfigDict) -> list[Call]:
    """Returns the calls of a search to the engine, one per generation."""
    first, later = generation_sizes(config)
    sizes = [first, *[later] * config.search.generations]
    return [call(SCREENING, size, config.train.steps) for size in sizes]


def screening_spent(records: list[Record], batch_tokens: float) -> dict[str, int]:
    """Returns the numbers of screening runs, failed runs and tokens, as in `Runs.spent`.

    Args:
      records: Records of a search.
      batch_tokens: Number of tokens per training step.
    """
    failed = [not math.isfinite(record.val_bpb[0]) for record in records]
    steps = sum(r.steps[0] + bad for r, bad in zip(records, failed, strict=True))
    return {"runs": len(records), "failed": sum(failed), "tokens": int(batch_tokens * steps)}


def summarise(records: list[Record], batch_tokens: float) -> dict[str, Any]:
    """Returns the fields of `summary.json` that depend only on the archive.

    Args:
      records: Records of a search.
      batch_tokens: Number of tokens per training step.
    """
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
            "stage": "screen",  # result of the screening run alone
            "val_bpb": best.merit.val_bpb,
            "delta_bpb": best.merit.val_bpb - baseline.merit.val_bpb,
        },
        "pareto": pareto_front({record.id: record.merit for record in records}),
        "winners": [record.id for record in records if record.status == "winner"],
        "training_runs": sum(len(record.seeds) for record in records),
        "tokens_trained": int(batch_tokens * sum(sum(record.steps) for record in records)),
    }
