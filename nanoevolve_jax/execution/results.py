"""What a training run gives."""

from typing import NamedTuple

import numpy as np

from nanoevolve_jax.execution.train import ALIVE, FAILURES, TELEMETRY


class RunResult(NamedTuple):
    """What a training run gave."""

    val_bpb: float  # at the end; NaN if the run failed
    train_loss: float  # mean of the last tenth, nats a token; NaN if the run failed
    failure: str | None  # reason, or None
    failed_step: int | None
    steps: int  # completed with finite numbers
    telemetry: np.ndarray  # float32[steps, 14], columns TELEMETRY
    curve: np.ndarray  # float64[evaluations + 1, 2]: step, validation bpb


def run_result(
    telemetry: np.ndarray, failed_step: int, failure: int, curve: list[tuple[int, float]]
) -> RunResult:
    """The result of a run from what its segments gave.

    Args:
      telemetry: float32[steps, 14], those from a failure on included.
      failed_step: the first non-finite step, or ALIVE.
      failure: index into FAILURES.
      curve: (step, validation bpb).
    """
    if failed_step == ALIVE and not np.isfinite(curve[-1][1]):
        reason, failed_step = "non-finite validation", len(telemetry)
    else:
        reason = None if failed_step == ALIVE else FAILURES[failure]
    steps = len(telemetry) if reason is None else failed_step
    last = telemetry[steps - max(1, steps // 10) : steps, TELEMETRY.index("loss")]
    return RunResult(
        val_bpb=float(curve[-1][1]) if reason is None else float("nan"),
        train_loss=float(np.mean(last, dtype=np.float64)) if reason is None else float("nan"),
        failure=reason,
        failed_step=None if reason is None else failed_step,
        steps=steps,
        telemetry=telemetry[:steps],
        curve=np.asarray([point for point in curve if point[0] <= steps], np.float64),
    )


def dead_result(reason: str, telemetry: np.ndarray, curve: list[tuple[int, float]]) -> RunResult:
    """Returns the result of a run that cannot go on.

    Args:
      reason: Why; it becomes `failure`.
      telemetry: float32[steps, 14], of the steps done.
      curve: Pairs (step, validation bpb).
    """
    return RunResult(
        val_bpb=float("nan"),
        train_loss=float("nan"),
        failure=reason,
        failed_step=len(telemetry),
        steps=len(telemetry),
        telemetry=telemetry,
        curve=np.asarray(curve, np.float64).reshape(-1, 2),
    )


LOST = "lost"


def lost_result(reason: str) -> RunResult:
    """The result of a run that no machine could finish; `failure` begins with `LOST`."""
    return dead_result(reason, np.zeros((0, len(TELEMETRY)), np.float32), [])
