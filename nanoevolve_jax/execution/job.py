"""Training runs described as data, and the batches that each run trains on."""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from nanoevolve_jax.data.batches import batch
from nanoevolve_jax.errors import must
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.train import Candidate, Segment
from nanoevolve_jax.policy.certified import Certified, code_from_json, code_to_json
from nanoevolve_jax.policy.spec_json import spec_from_json, spec_to_json

LABEL_NOISE, CORPUS_SWITCH, BATCH_SIZE = "label_noise", "corpus_switch", "batch_size"


class Disturbance(NamedTuple):
    """A temporary change of a run's data that a schedule cannot anticipate."""

    kind: str  # LABEL_NOISE, CORPUS_SWITCH or BATCH_SIZE
    start: int  # first disturbed step
    stop: int  # first step after the disturbance
    # Fraction of targets replaced (LABEL_NOISE) or factor on the batch size, 0.5 or 2 (BATCH_SIZE).
    amount: float = 1.0


class _Fields(NamedTuple):
    candidate: Candidate  # policy and recipe
    seed: int  # seed of the initial weights and the batches, uint32
    steps: int  # horizon
    fold: int = 0  # index of the validation fold
    gate: np.ndarray | None = None  # gate values that override the policy, float32[steps]
    disturbance: Disturbance | None = None  # change of the data, if any
    attempt: int = 0  # repeat number; distinguishes reruns of an otherwise identical job


class Job(_Fields):
    """Description of a training run. On one machine, equal jobs give bitwise equal results."""

    @functools.cached_property
    def key(self) -> str:
        """Identifier that equal jobs share, 16 hexadecimal digits. Computed once per object."""
        text = json.dumps(job_to_json(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


Seed = Annotated[int, Meta(ge=0, lt=1 << 32)]


class CandidateDocument(TypedDict):
    """JSON form of a candidate."""

    spec: dict[str, Any]
    recipe: dict[str, float]
    code: NotRequired[dict[str, str]]  # certificate id by slot


class DisturbanceDocument(TypedDict):
    """JSON form of a disturbance."""

    kind: Literal["label_noise", "corpus_switch", "batch_size"]
    start: int
    stop: int
    amount: float


class JobDocument(TypedDict):
    """JSON form of a job."""

    candidate: CandidateDocument
    seed: Seed
    steps: Annotated[int, Meta(ge=1)]
    fold: Annotated[int, Meta(ge=0)]
    gate: list[float] | None
    disturbance: DisturbanceDocument | None
    attempt: Annotated[int, Meta(ge=0)]


def candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    """Returns a candidate as a JSON object.

    Args:
      candidate: Candidate of concrete numbers. Its code, if any, is represented by certificate ids.
    """
    document: dict[str, Any] = {
        "spec": spec_to_json(candidate.spec),
        "recipe": {k: float(v) for k, v in candidate.recipe._asdict().items()},
    }
    return document | ({"code": code_to_json(candidate.code)} if candidate.code else {})


def job_to_json(job: Job) -> dict[str, Any]:
    """Returns a job as a JSON object that represents every number exactly.

    Args:
      job: Job to represent.
    """
    return job._asdict() | {
        "candidate": candidate_to_json(job.candidate),
        "gate": None if job.gate is None else [float(x) for x in job.gate],
        "disturbance": job.disturbance and job.disturbance._asdict(),
    }


def job_from_json(document: dict[str, Any], find: Callable[[str], Certified] | None = None) -> Job:
    """Returns the job that a JSON object represents.

    Args:
      document: Object of the form of `JobDocument`. The fields `fold` and `attempt` may be missing.
      find: Function that maps a certificate id to certified code. None if no job has code.

    Raises:
      CertificateError: If the code is not available or belongs to another slot.
      SpecError: If the spec is invalid.
    """
    candidate, gate = document["candidate"], document["gate"]
    return Job(
        **document
        | {
            "candidate": Candidate(
                spec_from_json(candidate["spec"]),
                Recipe(**candidate["recipe"]),
                code_from_json(candidate.get("code"), find),
            ),
            "gate": None if gate is None else np.asarray(gate, np.float32),
            "disturbance": document["disturbance"] and Disturbance(**document["disturbance"]),
        }
    )


class Stream(NamedTuple):
    """Training text from which batches are drawn."""

    rows: np.ndarray  # rows of tokens, int[N, T + 1]
    batch_size: int  # rows per step, unless a disturbance changes it
    vocab_size: int  # number of tokens in the vocabulary
    other_rows: np.ndarray | None = None  # rows of the corpus to switch to, int[M, T + 1]


def _disturbed(job: Job, step: int, kind: str) -> bool:
    event = job.disturbance
    return event is not None and event.kind == kind and event.start <= step < event.stop


def _rows(stream: Stream, job: Job, step: int) -> np.ndarray:
    if _disturbed(job, step, CORPUS_SWITCH):
        if stream.other_rows is None:
            raise ValueError("other_rows must be given for a job that switches the corpus")
        return batch(stream.other_rows, job.seed, step, stream.batch_size)
    rows = batch(stream.rows, job.seed, step, stream.batch_size)
    if _disturbed(job, step, BATCH_SIZE):
        # The extra rows come from beyond the horizon, so this run does not use them elsewhere.
        more = batch(stream.rows, job.seed, step + job.steps, stream.batch_size)
        rows = np.concatenate([rows, more])[: round(stream.batch_size * job.disturbance.amount)]
    return rows


def _targets(stream: Stream, job: Job, step: int, targets: np.ndarray) -> np.ndarray:
    if not _disturbed(job, step, LABEL_NOISE):
        return targets
    rng = np.random.default_rng([job.seed, step])
    wrong = rng.integers(0, stream.vocab_size, targets.shape, targets.dtype)
    return np.where(rng.random(targets.shape) < job.disturbance.amount, wrong, targets)


def feed(stream: Stream, job: Job, start: int, length: int, capacity: int) -> Segment:
    """Returns the segment of `length` steps that begins at `start`.

    Inputs and targets beyond the horizon are 0.

    Args:
      stream: Training text.
      job: Job of one lane.
      start: Index of the first step.
      length: Number of steps, K.
      capacity: Rows per step of the compiled program, B. A smaller batch is repeated to fill the
        rows, which changes neither its mean loss nor its gradient.

    Raises:
      ValueError: If the capacity is not a multiple of the batch size, or the job switches the
        corpus and the stream has only one.
    """
    width = stream.rows.shape[1] - 1
    inputs = np.zeros((length, capacity, width), np.int32)
    targets = np.zeros_like(inputs)
    gate = np.full(length, np.nan, np.float32)
    for i in range(min(length, job.steps - start)):
        rows = _rows(stream, job, start + i)
        if capacity % len(rows):
            raise ValueError(must("capacity", f"be a multiple of {len(rows)} rows", capacity))
        rows = np.tile(rows, (capacity // len(rows), 1)).astype(np.int32)
        inputs[i] = rows[:, :-1]
        targets[i] = _targets(stream, job, start + i, rows[:, 1:])
        if job.gate is not None:
            gate[i] = job.gate[start + i]
    return Segment(inputs, targets, gate)
