"""One training run as data: what is trained, on what, for how long, and what disturbs it."""

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.policy.certified import Certified, code_from_json, code_to_json
from nanoevolve_jax.policy.spec_json import spec_from_json, spec_to_json

LABEL_NOISE, CORPUS_SWITCH, BATCH_SIZE = "label_noise", "corpus_switch", "batch_size"


class Disturbance(NamedTuple):
    """Something that happens to a run's data and that no schedule could have known."""

    kind: str  # LABEL_NOISE, CORPUS_SWITCH or BATCH_SIZE
    start: int  # first step
    stop: int  # step after the last
    amount: float = 1.0  # share of targets replaced; or the factor on the batch, 0.5 or 2


class Job(NamedTuple):
    """A training run; equal jobs give equal bits on one machine."""

    candidate: Candidate
    seed: int  # of the initial weights and of the batches, uint32
    steps: int  # horizon
    fold: int = 0  # of the validation text
    gate: np.ndarray | None = None  # float32[steps] that replace the policy's own gate
    disturbance: Disturbance | None = None
    attempt: int = 0  # tells repeats of one run apart; nothing else reads it


Seed = Annotated[int, Meta(ge=0, lt=1 << 32)]


class CandidateDocument(TypedDict):
    """What a candidate trains, as JSON has it."""

    spec: dict[str, Any]
    recipe: dict[str, float]
    code: NotRequired[dict[str, str]]  # certificates by slot


class DisturbanceDocument(TypedDict):
    """A disturbance as JSON has it."""

    kind: Literal[LABEL_NOISE, CORPUS_SWITCH, BATCH_SIZE]
    start: int
    stop: int
    amount: float


class JobDocument(TypedDict):
    """A job as JSON has it."""

    candidate: CandidateDocument
    seed: Seed
    steps: Annotated[int, Meta(ge=1)]
    fold: Annotated[int, Meta(ge=0)]
    gate: list[float] | None
    disturbance: DisturbanceDocument | None
    attempt: Annotated[int, Meta(ge=0)]


def candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    """The JSON object of a candidate; code, where there is any, by its certificates."""
    document: dict[str, Any] = {
        "spec": spec_to_json(candidate.spec),
        "recipe": {k: float(v) for k, v in candidate.recipe._asdict().items()},
    }
    return document | ({"code": code_to_json(candidate.code)} if candidate.code else {})


def job_to_json(job: Job) -> dict[str, Any]:
    """The JSON object of a job; numbers survive exactly."""
    return job._asdict() | {
        "candidate": candidate_to_json(job.candidate),
        "gate": None if job.gate is None else [float(x) for x in job.gate],
        "disturbance": job.disturbance and job.disturbance._asdict(),
    }


def job_from_json(document: dict[str, Any], find: Callable[[str], Certified] | None = None) -> Job:
    """The job of a JSON object.

    Args:
      document: see `job_to_json`.
      find: certified code by its id, where jobs may have any.
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


def job_key(job: Job) -> str:
    """A name that equal jobs share; 16 hexadecimal digits."""
    text = json.dumps(job_to_json(job), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
