"""Script of the sandbox: validates a source, or compares an exported file with its policy.

The request is JSON with the name of a function below and its arguments; the result is JSON. Nothing
is printed.
"""

import base64
import json
import os
import sys
from typing import Any

THREADS = 2


def validate(**request: Any) -> dict[str, Any]:
    """Validates a source, whose text has been checked before; see `checks.check`.

    Returns:
      `refusal` with its `reason` and `message`, or `accepted` with `computation`,
      `seed_computation`, `checks` and, per shape, `programs` with their facts and `content`.
    """
    from nanoevolve_jax.codegen.validation import checks
    from nanoevolve_jax.codegen.validation.refusals import Refused, first_line

    for name in ("shapes", "tried"):
        request[name] = [shape and tuple(shape) for shape in request[name]]
    try:
        passed = checks.check(**request)
    except Refused as error:
        return {"refusal": error.refusal._asdict()}
    except MemoryError:
        message = "it needs more memory than the sandbox has"
        return {"refusal": Refused("memory", message).refusal._asdict()}
    except BaseException as error:  # a source must not decide how this process ends
        return {"refusal": Refused("trace", first_line(error)).refusal._asdict()}
    programs = {
        key: program._asdict() | {"content": _text(program.content)}
        for key, program in passed.programs.items()
    }
    return {"accepted": passed._asdict() | {"programs": programs, "checks": checks.PASSED}}


def compare(spec: dict, file: str, functions: list[dict[str, Any]]) -> dict[str, Any]:
    """Compares an exported optax file with its policy; see `exports.agreement.check_optax`.

    Returns:
      The fields of an `Agreement`; None for a number that is not finite.
    """
    import math

    from nanoevolve_jax.exports.agreement import check_optax
    from nanoevolve_jax.policy.certified import Certified, Code
    from nanoevolve_jax.policy.spec_json import spec_from_json

    for function in functions:
        programs = function["programs"].items()
        function["programs"] = {key: base64.b64decode(text) for key, text in programs}
    code = Code(tuple(Certified(**function) for function in functions))
    agreement = check_optax(spec_from_json(spec), file, code)
    return {k: v if math.isfinite(v) else None for k, v in agreement._asdict().items()}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


if __name__ == "__main__":
    os.environ.update(  # before JAX is imported
        JAX_PLATFORMS="cpu",
        NPROC=str(THREADS),  # of XLA's pools
        TF_CPP_MIN_LOG_LEVEL="3",
        JAX_ENABLE_COMPILATION_CACHE="false",
    )
    name, arguments = json.load(sys.stdin.buffer)
    result = {"validate": validate, "compare": compare}[name](**arguments)
    with os.fdopen(int(sys.argv[1]), "w") as stream:
        json.dump(result, stream)
