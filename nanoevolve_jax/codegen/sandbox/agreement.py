"""Compares an exported file that contains rewritten functions with its policy, in the sandbox."""

import base64
import functools
import json
import math

import msgspec

from nanoevolve_jax.codegen.sandbox import runner
from nanoevolve_jax.codegen.sandbox.certify import WORKER
from nanoevolve_jax.codegen.sandbox.runner import Isolation, Limits
from nanoevolve_jax.exports.agreement import Agreement, Check
from nanoevolve_jax.policy.certified import CertificateError, Code
from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.spec_json import spec_to_json

_LIMITS = Limits(seconds=3600.0, cpu_seconds=7200)  # matrices of width 768 take minutes
_MOST = 1e30  # largest number in a result
_COUNTS = ("flips", "held", "entries", "steps")


def export_check(code: Code, isolation: str) -> Check:
    """Returns the function that compares an exported file with its policy in the sandbox.

    Args:
      code: Not used; part of the interface of `plugins.CodeSupport`.
      isolation: Required isolation, either `runner.REQUIRED` or `runner.AVAILABLE`.

    Raises:
      ConfigError: If the sandbox of this machine lacks a required protection.
    """
    del code
    return functools.partial(check, isolation=runner.isolation(isolation))


def check(spec: OptimizerSpec, file: str, code: Code, isolation: Isolation) -> Agreement:
    """Runs `exports.agreement.check_optax` in the sandbox and returns its result.

    Args:
      spec: Spec of the policy.
      file: Text of the file exported for optax.
      code: Rewritten functions of the policy, at least one.
      isolation: Isolation of the sandbox.

    Raises:
      CertificateError: If the sandbox returns no valid result. The message states how its process
        ended.
    """
    functions = [
        {
            "source": f.source,
            "certificate": dict(f.certificate),
            "programs": {k: base64.b64encode(x).decode() for k, x in f.programs.items()},
        }
        for f in code.functions
    ]
    request = {"spec": spec_to_json(spec), "file": file, "functions": functions}
    outcome = runner.run(WORKER, json.dumps(("compare", request)).encode(), _LIMITS, isolation)
    try:
        result = msgspec.json.decode(outcome.result, type=dict[str, int | float | None])
        in_range = all(value is None or 0 <= value <= _MOST for value in result.values())
        if not in_range or not all(type(result[name]) is int for name in _COUNTS):
            raise ValueError("a number is out of range")
        numbers = {k: math.inf if v is None else v for k, v in result.items()}
        return Agreement(**numbers)
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError, ValueError):
        last = (outcome.errors.strip().splitlines() or ["no message"])[-1][:200]
        raise CertificateError(
            f"code {code.id} could not be compared with its file in the sandbox "
            f"({outcome.stopped or 'ended'}, code {outcome.code}: {last})"
        ) from None
