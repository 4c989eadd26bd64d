"""A whole search: generations proposed, trained, scored and kept."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.score import Merit, instability, pareto_front, score
from nanoevolve_jax.evolution import archive, tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.run_folder import save_telemetry
from nanoevolve_jax.execution.cost import step_flops
from nanoevolve_jax.execution.engine import Job, LocalEngine, Progress, RunResult
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.execution.train import TELEMETRY, Candidate
from nanoevolve_jax.policy.canonical import canonical

ARCHIVE = "archive.jsonl"


class Campaign(NamedTuple):
    """What a search is run with."""

    engine: LocalEngine
    recipe: Recipe
    config: ConfigDict
    folder: Path

    def sizes(self) -> list[int]:
        """Records in generation 0 and in every later one."""
        return [len(tournament.founders()), self.config.search.population]

    def load(self) -> list[Record]:
        """The records of all complete generations."""
        return archive.load(self.folder / ARCHIVE, self.sizes())

    def generations(
        self, on_progress: Callable[[Progress], None]
    ) -> Iterator[tuple[int, list[Record]]]:
        """Runs what is left; yields (generation, all records so far) after each one.

        Every candidate trains on the campaign's seed: same initial weights, same batches.
        """
        records = self.load()
        require_baseline(records)
        done = records[-1].generation if records else -1
        for generation in range(done + 1, self.config.search.generations + 1):
            proposals = self.propose(records, generation)
            jobs = [Job(Candidate(p.spec, self.recipe), self.config.seed) for p in proposals]
            fresh: list[Record] = []
            for proposal, result in zip(proposals, self.engine.run(jobs, on_progress), strict=True):
                save_telemetry(self.folder, proposal.id, telemetry_columns(result))
                baseline = (records + fresh)[0].merit if records or fresh else None
                fresh.append(self.judge(proposal, result, baseline))
            fresh = tournament.settle(records, fresh, self.config.search.survivors)
            archive.append(self.folder / ARCHIVE, fresh)
            records = [*records, *fresh]
            require_baseline(records)
            yield generation, records

    def propose(self, records: list[Record], generation: int) -> list[tournament.Proposal]:
        """The candidates of one generation."""
        if generation == 0:
            return tournament.founders()
        search = self.config.search
        return tournament.children(
            records,
            generation=generation,
            seed=self.config.seed,
            population=search.population,
            parents=search.survivors,
            tournament=search.tournament,
        )

    def judge(
        self, proposal: tournament.Proposal, result: RunResult, baseline: Merit | None
    ) -> Record:
        """Turns a training run into a record; the first one judged is the baseline."""
        losses = result.telemetry[:, TELEMETRY.index("loss")]
        shake = instability(losses) if result.failure is None else float("nan")
        merit = Merit(result.val_bpb, step_flops(self.engine.task, proposal.spec), shake)
        failure = result.failure and {"reason": result.failure, "step": result.failed_step}
        return Record(
            **proposal._asdict(),
            status="",
            failure=failure,
            stage="screen",
            seeds=[self.config.seed],
            val_bpb=[result.val_bpb],
            train_loss=[result.train_loss],
            steps=[result.steps],
            instability=[shake],
            score=score(
                merit,
                baseline or merit,
                cost_weight=self.config.search.cost_weight,
                stability_weight=self.config.search.stability_weight,
            ),
            cost=merit.cost,
            pareto=False,
        )


def require_baseline(records: list[Record]) -> None:
    """Refuses a recipe under which the baseline fails: there is nothing to compare with.

    Raises:
      ConfigError: if the first record has failed.
    """
    failure = records[0].failure if records else None
    if failure is not None:
        raise ConfigError(
            f"config.recipe fails on the baseline ({failure['reason']} at step {failure['step']}); "
            "allowed: learning rates at which it trains"
        )


def telemetry_columns(result: RunResult) -> dict[str, np.ndarray]:
    """Per step: sensors, gate, actuators, loss, gradient norm; and the validation curve."""
    columns = dict(zip(TELEMETRY, result.telemetry.T, strict=True))
    log_norm = columns.pop("log_grad_norm")
    return columns | {
        "grad_norm": np.exp(log_norm),
        "validation_step": result.curve[:, 0].astype(np.int64),
        "validation_bpb": result.curve[:, 1],
    }


def summarise(records: list[Record], batch_tokens: float) -> dict[str, Any]:
    """The part of `summary.json` that follows from the records alone."""
    baseline = records[0]
    best = tournament.survivors(records, 1)[0]
    return {
        "candidates": len({canonical(record.spec) for record in records}),
        "evaluated": sum(record.failure is None for record in records),
        "dead": sum(record.failure is not None for record in records),
        "generations": records[-1].generation,
        "baseline_val_bpb": baseline.merit.val_bpb,
        "best": {
            "id": best.id,
            "val_bpb": best.merit.val_bpb,
            "delta_bpb": best.merit.val_bpb - baseline.merit.val_bpb,
        },
        "compared_with": "an untuned baseline",
        "pareto": pareto_front({record.id: record.merit for record in records}),
        "winners": [],  # screening alone proves nothing: confirmation declares winners
        "training_runs": sum(len(record.seeds) for record in records),
        "tokens_trained": int(batch_tokens * sum(sum(record.steps) for record in records)),
    }
