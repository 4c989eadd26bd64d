"""An exported file with rewritten functions compared with our optimizer, behind the walls.

The file holds sources; this process, which is a user's or a confirmation's, does not run it.
"""

import base64
import functools
import json
import math
from pathlib import Path

from nanoevolve_jax.codegen.sandbox import runner
from nanoevolve_jax.codegen.sandbox.runner import Isolation, Limits
from nanoevolve_jax.exports.agreement import Agreement, Check, check_optax
from nanoevolve_jax.policy.certified import CertificateError, Code
from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.spec_json import spec_to_json

_SCRIPT = Path(__file__).resolve().parent / "agreed.py"
_LIMITS = Limits(seconds=3600.0, cpu_seconds=7200)  # matrices of 768 take minutes
_FILE = "agreement.json"


def checker(code: Code | None, isolation: str) -> Check:
    """What compares a file with the policy it was made from: the jail, if there is code in it.

    Raises:
      ConfigError: if there is, and this machine lacks the walls that are asked for.
    """
    if not code:
        return check_optax
    return functools.partial(check, walls=runner.isolation(isolation))


def check(spec: OptimizerSpec, file: str, code: Code, walls: Isolation) -> Agreement:
    """What `exports.agreement.check_optax` says, from a child process.

    Args:
      spec: the policy.
      file: exported for optax, its text.
      code: the policy's; not empty.
      walls: around the child.

    Raises:
      CertificateError: if the child does not get to an answer, which says how it ended.
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
    outcome = runner.run(_SCRIPT, json.dumps(request).encode(), _LIMITS, walls)
    try:
        found = Agreement(**json.loads(outcome.files[_FILE]))
        numbers = [_number(x) for x in found]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        last = (outcome.errors.strip().splitlines() or ["it said nothing"])[-1][:200]
        raise CertificateError(
            f"code {code.id} could not be compared with its file in the jail "
            f"({outcome.stopped or 'ended'}, code {outcome.code}: {last})"
        ) from None
    return found if not any(map(math.isnan, numbers)) else found._replace(max_relative_l2=math.inf)


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{type(value).__name__} is no number")
    return float(value)
