"""From source that nobody has read to certified code, or to the reason why not.

The source is checked, traced and tried by `worker.py` in a child process behind the walls of
`sandbox.py`. What the child says is not believed: files are bounded and must be plain, hashes are
computed here, the certificate is composed here, and every program is loaded once through
`policy.certified`, which checks its operations and its arguments again.
"""

import json
import platform
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
from jax import export

from nanoevolve_jax.codegen.sandbox import runner
from nanoevolve_jax.codegen.sandbox.runner import Isolation, Limits
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.programs import PLATFORMS
from nanoevolve_jax.codegen.validation.refusals import REASONS, Refusal, Refused
from nanoevolve_jax.policy.certified import FORMAT, CertificateError, Certified, digest
from nanoevolve_jax.policy.slots import Shape, shape_key, shapes_of

MAX_COST = 4.0
"""Times the built-in function's arithmetic that a function may cost."""

_WORKER = Path(__file__).resolve().parents[1] / "validation" / "worker.py"
_RESULT, _PROGRAM = "result.json", ".stablehlo"
_RESULT_BYTES = 1 << 20
_MOST = 1e30  # of anything that is counted
_FACTS = ("flops", "bytes", "memory", "baseline_flops", "tried")
_HASH = re.compile(r"[0-9a-f]{16,64}")
_OUT_OF_MEMORY = ("memoryerror", "bad_alloc", "resource_exhausted", "out of memory")


class Verdict(NamedTuple):
    """What validation says of a source: certified code, or a refusal; and how long it took."""

    certified: Certified | None
    refusal: Refusal | None
    seconds: float  # wall clock; no part of the certificate


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
    """Validates one source; safe to call from threads, and nothing of it stays on disk.

    Args:
      slot: one of `SLOTS`.
      source: Python text.
      matrices: (inputs, outputs) of all matrices that it must work for.
      dtype: 'float32' or 'bfloat16', of the iteration.
      limits: of the child.
      isolation: walls around the child; incomplete ones that were not accepted refuse every source.
      max_cost: times the built-in function's arithmetic that it may cost.
      also: further matrices, for which it is checked and exported, but not run.

    Returns:
      The same for the same source on the same machine, but for its seconds.
    """
    started = time.monotonic()
    try:
        certified = _certified(slot, source, matrices, dtype, limits, isolation, max_cost, also)
        refusal = None
    except Refused as refused:
        certified, refusal = None, refused.refusal
    return Verdict(certified, refusal, time.monotonic() - started)


def _certified(slot, source, matrices, dtype, limits, isolation, max_cost, also) -> Certified:
    if isolation.refusal:
        raise Refused("isolation", isolation.refusal)
    _require_readable(source)
    shapes = shapes_of(slot, [*matrices, *also])
    request = {
        "slot": slot,
        "source": source,
        "shapes": shapes,
        "tried": shapes_of(slot, matrices),
        "dtype": dtype,
        "max_cost": max_cost,
        "max_source_bytes": language.MAX_SOURCE_BYTES,
    }
    outcome = runner.run(_WORKER, json.dumps(request).encode(), limits, isolation)
    result, programs = _found(outcome, shapes, limits)
    held_to = limits._asdict() | {"max_cost": max_cost}
    certified = compose(slot, source, dtype, result, programs, isolation.in_words(), held_to)
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
    result: Mapping[str, Any],
    programs: Mapping[str, bytes],
    walls: str,
    limits: Mapping[str, float],
) -> Certified:
    """Source and programs with their certificate.

    Args:
      slot: one of `SLOTS`.
      source: as it was given; what is kept of it is code alone, for comments could talk to readers.
      dtype: of the iteration.
      result: of the child: `computation`, `seed_computation`, `checks`, and facts by program.
      programs: by `shape_key`.
      walls: in words.
      limits: what the child and its source were held to.
    """
    kept = language.normalised(source)
    certificate = {
        "format": FORMAT,
        "slot": slot,
        "dtype": dtype,
        "source_sha256": digest(kept.encode()),
        "computation": result["computation"],
        "seed_computation": result["seed_computation"],
        "programs": {
            key: {"sha256": digest(program)} | result["programs"][key]
            for key, program in programs.items()
        },
        "checks": list(result["checks"]),
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
    """The program itself takes and gives what stands beside it; nothing is compiled or run.

    Raises:
      CertificateError: if it does not, and would stop whoever trains with it.
    """
    arguments = [jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in program.in_avals]
    try:
        jax.jit(program.call).trace(*arguments).lower(lowering_platforms=PLATFORMS)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise CertificateError(f"a program cannot be called: {first}") from None


def _require_readable(source: str) -> None:
    """What needs no child to be refused."""
    if len(source) > language.MAX_SOURCE_BYTES:
        raise Refused(
            "too_long",
            f"the source has {len(source)} characters; allowed: at most "
            f"{language.MAX_SOURCE_BYTES} bytes",
        )
    try:
        source.encode()
    except UnicodeEncodeError:
        raise Refused("syntax", "the source is not valid Unicode") from None


def _found(
    outcome: runner.Outcome, shapes: Sequence[Shape], limits: Limits
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Result and programs of a child that found nothing to refuse.

    Raises:
      Refused: for the child's reason, or because of how it ended or what it wrote.
    """
    _require_end(outcome, limits)
    strange = sorted(name for name, content in outcome.files.items() if content is None)
    if strange:
        raise Refused("link", f"the child left {strange[0][:80]!r}, which is no plain file")
    result = _result(outcome.files)
    keys = [shape_key(shape) for shape in shapes]
    wanted = {_RESULT} | {f"{key}{_PROGRAM}" for key in keys if result["refusal"] is None}
    for name in sorted(wanted ^ outcome.files.keys()):
        what = "did not leave" if name in wanted else "left"
        raise Refused("output", f"the child {what} the file {name[:80]!r}")
    if result["refusal"] is not None:
        raise Refused(**result["refusal"])
    _require_facts(result, keys)
    facts = {key: {name: result["programs"][key][name] for name in _FACTS} for key in keys}
    programs = {key: outcome.files[f"{key}{_PROGRAM}"] for key in keys}
    return result | {"programs": facts}, programs


def _require_end(outcome: runner.Outcome, limits: Limits) -> None:
    """Refuses what did not end by itself, with a result."""
    if outcome.stopped == "time":
        raise Refused(
            "timeout",
            f"the child did not end in {limits.seconds:g} s, or took over {limits.cpu_seconds} s "
            "of CPU time",
        )
    if outcome.stopped == "output":
        raise Refused("output", f"the child wrote more than {limits.output} bytes")
    if outcome.code and any(word in outcome.errors.lower() for word in _OUT_OF_MEMORY):
        raise Refused("memory", f"the child needs more than {limits.memory} bytes of memory")
    if outcome.code > 128:
        raise Refused("killed", f"the child was killed by {_signal_name(outcome.code - 128)}")
    if outcome.code:
        raise Refused("output", f"the child ended with code {outcome.code} and no result")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _result(files: dict[str, bytes | None]) -> dict[str, Any]:
    """The child's result, of the agreed form."""
    content = files.get(_RESULT)
    if content is None or len(content) > _RESULT_BYTES:
        raise Refused("output", f"the child left no {_RESULT} of at most {_RESULT_BYTES} bytes")
    try:
        result = json.loads(content)
        refusal = result["refusal"]
        fits = refusal is None or (
            refusal.keys() == {"reason", "message"}
            and refusal["reason"] in REASONS
            and isinstance(refusal["message"], str)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise Refused("output", f"the child's {_RESULT} is not of the agreed form")
    return result


def _require_facts(result: dict[str, Any], keys: Sequence[str]) -> None:
    """The rest of a result without a refusal is of the agreed form."""
    try:
        fits = (
            _is_hash(result["computation"])
            and _is_hash(result["seed_computation"])
            and isinstance(result["checks"], list)
            and all(isinstance(x, str) and len(x) <= 200 for x in result["checks"])
            and len(result["checks"]) <= 100
            and sorted(result["programs"]) == sorted(keys)
            and all(_is_count(result["programs"][key][x]) for key in keys for x in _FACTS)
        )
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise Refused("output", f"the facts in the child's {_RESULT} are not of the agreed form")


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_count(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST  # no NaN, no integer without end
