"""Results of training runs and their JSON form."""

import base64
from typing import Any, NamedTuple, TypedDict

import numpy as np

from nanoevolve_jax.execution.json_files import Count, finite_or_null, typed
from nanoevolve_jax.execution.train import ALIVE, FAILURES, TELEMETRY


class RunResult(NamedTuple):
    """Result of a training run."""

    val_bpb: float  # final validation loss in bits per byte, or NaN if the run failed
    train_loss: float  # mean loss in nats per token over the last tenth of the steps, NaN if failed
    failure: str | None  # reason for the failure, or None
    failed_step: int | None  # step at which the run failed, or None
    steps: int  # number of steps before the failure or the horizon
    telemetry: np.ndarray  # telemetry with columns TELEMETRY, float32[steps, 14]
    curve: np.ndarray  # pairs (step, validation bpb), float64[evaluations + 1, 2]


class Lost(NamedTuple):
    """Reason for abandoning jobs after the machines that trained them were lost."""

    reason: str


def run_result(
    telemetry: np.ndarray, failed_step: int, failure: int, curve: list[tuple[int, float]]
) -> RunResult:
    """Returns the result of a run from the outputs of its segments.

    Args:
      telemetry: Telemetry of all steps, including those after a failure, float32[steps, 14].
      failed_step: First non-finite step, or ALIVE.
      failure: Index into FAILURES.
      curve: Pairs (step, validation bpb).
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
    """Returns the result of a run that cannot continue.

    Args:
      reason: Reason, which becomes `failure`.
      telemetry: Telemetry of the completed steps, float32[steps, 14].
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
    """Returns the result of a run that no machine could finish.

    Args:
      reason: Reason, which starts with `LOST` and becomes `failure`.
    """
    return dead_result(reason, np.zeros((0, len(TELEMETRY)), np.float32), [])


class _Packed(TypedDict):
    shape: tuple[Count, Count]
    float32: str  # little-endian bytes in base64


class _ResultDocument(TypedDict):
    val_bpb: float | None
    train_loss: float | None
    failure: str | None
    failed_step: int | None
    steps: Count
    telemetry: _Packed
    curve: list[tuple[int, float | None]]


def result_to_json(result: RunResult) -> dict[str, Any]:
    """Returns a result as a JSON object that represents the telemetry bit for bit.

    Args:
      result: Result to represent.
    """
    content = np.ascontiguousarray(result.telemetry, "<f4").tobytes()
    packed = {"shape": [*result.telemetry.shape], "float32": base64.b64encode(content).decode()}
    curve = [(int(step), float(bpb)) for step, bpb in result.curve]
    return finite_or_null(result._replace(telemetry=packed, curve=curve))


def result_from_json(document: dict[str, Any]) -> RunResult:
    """Returns the result that a JSON object represents.

    Args:
      document: Object in the form returned by `result_to_json`. Additional fields are ignored.

    Raises:
      ValueError: If the object has another form.
    """
    typed(document, _ResultDocument)
    packed, nan = document["telemetry"], float("nan")
    telemetry = np.frombuffer(base64.b64decode(packed["float32"]), "<f4").reshape(packed["shape"])
    if telemetry.shape[1] != len(TELEMETRY):
        raise ValueError(f"telemetry must have {len(TELEMETRY)} columns")
    numbers = {name: document[name] for name in RunResult._fields}
    for name in ("val_bpb", "train_loss"):
        numbers[name] = nan if numbers[name] is None else float(numbers[name])
    # `None` in the curve becomes NaN.
    curve = np.array(document["curve"], np.float64).reshape(-1, 2)
    return RunResult(**numbers | {"telemetry": telemetry.copy(), "curve": curve})
