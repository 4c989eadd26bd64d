"""Validates untrusted source and returns certified code or a refusal.

The text is checked in this process. The source is traced and run by `worker.py` in the sandbox. Its
result is not trusted, so this process checks the size and form of the result, computes the hashes,
and loads every program through `policy.certified`, which checks operations and arguments again.
"""

import json
import platform
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jaxlib
import msgspec
from jax import export
from ml_collections import ConfigDict

from nanoevolve_jax.codegen.sandbox import runner
from nanoevolve_jax.codegen.sandbox.runner import Isolation, Limits
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.costs import PLATFORMS
from nanoevolve_jax.codegen.validation.refusals import REASONS, Refusal, Refused, first_line
from nanoevolve_jax.execution.cost import matrix_shapes
from nanoevolve_jax.execution.settings import make_task
from nanoevolve_jax.policy.certified import FORMAT, CertificateError, Certified, digest
from nanoevolve_jax.policy.slots import shape_key, shapes_of

MAX_COST = 4.0
"""Default bound on a function's arithmetic, as a multiple of the built-in function's."""
WORKER = Path(__file__).resolve().parent / "worker.py"
_OUT_OF_MEMORY = ("memoryerror", "bad_alloc", "resource_exhausted", "out of memory")


class Verdict(NamedTuple):
    """Result of a validation: certified code or a refusal."""

    certified: Certified | None
    refusal: Refusal | None
    seconds: float  # wall-clock time; not part of the certificate


_Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16,64}\Z")]
_Amount = Annotated[float, msgspec.Meta(ge=0, le=1e30)]
_Name = Annotated[str, msgspec.Meta(max_length=200)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class _Program(msgspec.Struct, forbid_unknown_fields=True):
    content: bytes  # serialized program; base64 in JSON
    flops: _Amount
    bytes: _Amount
    memory: Count
    baseline_flops: _Amount
    tried: Count


class _Accepted(msgspec.Struct, forbid_unknown_fields=True):
    computation: _Hash
    seed_computation: _Hash
    programs: dict[str, _Program]
    checks: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=200)]], msgspec.Meta(max_length=100)
    ]


class _Refusal(msgspec.Struct, forbid_unknown_fields=True):
    reason: Literal[tuple(REASONS)]  # type: ignore[valid-type]
    message: str


class _Result(msgspec.Struct, forbid_unknown_fields=True):
    accepted: _Accepted | None = None
    refusal: _Refusal | None = None


def matrices_of(config: ConfigDict) -> list[tuple[int, int]]:
    """Returns the shapes (inputs, outputs) of the matrices that Muon updates in a model.

    Args:
      config: Full configuration, which describes the model.
    """
    return list(matrix_shapes(make_task(config).model))


def validate(
    slot: str,
    source: str,
    matrices: Sequence[tuple[int, int]],
    dtype: str,
    limits: Limits,
    isolation: Isolation,
    max_cost: float = MAX_COST,
    also: Sequence[tuple[int, int]] = (),
) -> Verdict:
    """Validates a source in the sandbox.

    The function is thread-safe and leaves no files on disk. Except for the seconds, the verdict is
    the same each time that a source is validated on the same machine.

    Args:
      slot: Name of the slot, one of `SLOTS`.
      source: Python text of the source.
      matrices: Shapes (inputs, outputs) of the matrices for which the function is run.
      dtype: Dtype of the matrix iteration, 'float32' or 'bfloat16'.
      limits: Resource limits of the child process.
      isolation: Isolation of the sandbox. Every source is refused if protections are missing and
        incomplete isolation is not accepted.
      max_cost: Bound on the FLOPs and bytes of the function, as a multiple of those of the built-in
        function.
      also: Shapes of further matrices, for which the function is checked and exported but not run.

    Returns:
      Certified code or a refusal, and the seconds that the validation took.
    """
    started = time.monotonic()
    certified = refusal = None
    try:
        certified = _certified(slot, source, matrices, dtype, limits, isolation, max_cost, also)
    except Refused as refused:
        refusal = refused.refusal
    return Verdict(certified, refusal, time.monotonic() - started)


def _certified(slot, source, matrices, dtype, limits, isolation, max_cost, also) -> Certified:
    if isolation.refusal:
        raise Refused("isolation", isolation.refusal)
    language.check(source, slot)
    shapes = shapes_of(slot, [*matrices, *also])
    request = {"slot": slot, "source": source, "shapes": shapes, "dtype": dtype}
    request |= {"tried": shapes_of(slot, matrices), "max_cost": max_cost}
    outcome = runner.run(WORKER, json.dumps(("validate", request)).encode(), limits, isolation)
    accepted = accepted_by(outcome, limits)
    facts = msgspec.to_builtins(accepted, builtin_types=(bytes,))
    if facts["programs"].keys() != {shape_key(shape) for shape in shapes}:
        raise Refused("output", f"the sandbox returned programs for {sorted(facts['programs'])}")
    programs = {shape_key(x): facts["programs"][shape_key(x)].pop("content") for x in shapes}
    held_to = limits._asdict() | {"max_cost": max_cost}
    certified = compose(slot, source, dtype, facts, programs, isolation.in_words(), held_to)
    try:
        for shape in shapes:
            _require_callable(certified.load(shape))
    except CertificateError as error:
        raise Refused("certificate", error) from None
    return certified


def compose(
    slot: str,
    source: str,
    dtype: str,
    facts: Mapping[str, Any],
    programs: Mapping[str, bytes],
    walls: str,
    limits: Mapping[str, float],
) -> Certified:
    """Returns a source and its programs with a certificate.

    Args:
      slot: Name of the slot, one of `SLOTS`.
      source: Text of the source. Comments are removed, because a language model that reads the
        source later might follow instructions in them.
      dtype: Dtype of the matrix iteration.
      facts: Results of the worker: `computation`, `seed_computation`, `checks`, and the costs of
        each program in `programs`.
      programs: Serialized programs by `shape_key`.
      walls: Description of the isolation of the sandbox.
      limits: Limits of the child process and of the source's cost.
    """
    kept = language.normalised(source)
    certificate = {
        "format": FORMAT,
        "slot": slot,
        "dtype": dtype,
        "source_sha256": digest(kept.encode()),
        "computation": facts["computation"],
        "seed_computation": facts["seed_computation"],
        "programs": {
            key: {"sha256": digest(program)} | facts["programs"][key]
            for key, program in programs.items()
        },
        "checks": list(facts["checks"]),
        "versions": {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "python": platform.python_version(),
        },
        "isolation": walls,
        "limits": dict(limits),
    }
    return Certified(kept, certificate, programs)


def _require_callable(program: export.Exported) -> None:
    """Checks that a program's module has the arguments and results that its metadata declares.

    The program is lowered, but neither compiled nor run.
    """
    arguments = [jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in program.in_avals]
    try:
        jax.jit(program.call).trace(*arguments).lower(lowering_platforms=PLATFORMS)
    except Exception as error:
        raise CertificateError(f"a program cannot be called: {first_line(error)}") from None


def accepted_by(outcome: runner.Outcome, limits: Limits) -> _Accepted:
    """Returns the result of a worker that has accepted the source.

    Args:
      outcome: Result of the script in the sandbox.
      limits: Resource limits of the sandbox, for messages.

    Raises:
      Refused: If the worker has refused the source, has failed or has returned an invalid result.
    """
    _require_end(outcome, limits)
    try:
        result = msgspec.json.decode(outcome.result, type=_Result)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise Refused("output", f"the sandbox returned no valid result: {error}") from None
    if result.refusal is not None:
        raise Refused(result.refusal.reason, result.refusal.message)
    if result.accepted is None:
        raise Refused("output", "the sandbox returned an empty result")
    return result.accepted


def _require_end(outcome: runner.Outcome, limits: Limits) -> None:
    """Refuses a source whose worker was stopped or ended with an error."""
    code = outcome.code
    if outcome.stopped == "time":
        raise Refused(
            "timeout", f"over {limits.seconds:g} s, or over {limits.cpu_seconds} s of CPU time"
        )
    if outcome.stopped == "output":
        raise Refused("output", f"the sandbox wrote more than {limits.output} bytes")
    if code and any(word in outcome.errors.lower() for word in _OUT_OF_MEMORY):
        raise Refused("memory", f"the sandbox needs more than {limits.memory} bytes of memory")
    if code > 128:
        names = {int(x): x.name for x in signal.Signals}
        raise Refused("killed", f"the sandbox was killed by {names.get(code - 128, 'a signal')}")
    if code:
        raise Refused("output", f"the sandbox ended with code {code} and no result")
