"""Script of the sandbox: validates a source, or compares an exported file with its policy.

The request is JSON with the name of a function of this module and its arguments. The result is JSON
that is written to a file descriptor. Nothing is printed.
"""

import base64
import json
import os
import sys
from typing import Any

THREADS = 2


def validate(**request: Any) -> dict[str, Any]:
    """Validates a source whose text has already been checked.

    Args:
      **request: Arguments of `checks.check`. Shapes are lists instead of tuples.

    Returns:
      Dictionary with a single key. `refusal` contains `reason` and `message`. `accepted` contains
      `computation`, `seed_computation`, `checks` and `programs`, which has the costs and the
      `content` of a program for each shape.
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
    except BaseException as error:  # a source must not control the end of this process
        return {"refusal": Refused("trace", first_line(error)).refusal._asdict()}
    programs = {
        key: program._asdict() | {"content": _text(program.content)}
        for key, program in passed.programs.items()
    }
    return {"accepted": passed._asdict() | {"programs": programs, "checks": checks.PASSED}}


def compare(spec: dict, file: str, functions: list[dict[str, Any]]) -> dict[str, Any]:
    """Compares an exported optax file with its policy by `exports.agreement.check_optax`.

    Args:
      spec: Spec of the policy, as JSON.
      file: Text of the file exported for optax.
      functions: Rewritten functions, as keyword arguments of `Certified`. Programs are encoded in
        base64.

    Returns:
      Fields of an `Agreement`. Numbers that are not finite are replaced by None.
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
    os.environ.update(  # must run before JAX is imported
        JAX_PLATFORMS="cpu",
        NPROC=str(THREADS),  # size of XLA's thread pools
        TF_CPP_MIN_LOG_LEVEL="3",
        JAX_ENABLE_COMPILATION_CACHE="false",
    )
    name, arguments = json.load(sys.stdin.buffer)
    result = {"validate": validate, "compare": compare}[name](**arguments)
    with os.fdopen(int(sys.argv[1]), "w") as stream:
        json.dump(result, stream)
