"""What runs in the child process: judges one source and leaves its verdict in a folder.

    python -I -B worker.py FOLDER < request.json

The request is JSON: `slot`, `source`, `shapes` ([[64, 256], ...] or [null]), `tried` (those of them
at which it is run), `dtype`, `max_cost`, `max_source_bytes`. FOLDER gets one
`<shape key>.stablehlo` a shape, then `result.json`: `refusal` (null, or `reason` and `message`),
`computation`, `seed_computation`, `programs` and `checks`.

Nothing is printed. What is wrong with the text is found before JAX is imported.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

THREADS = 2


def main(arguments: list[str], request: bytes) -> int:
    """Judges the source of a request; gives the exit code, 0 whatever the verdict."""
    folder = Path(arguments[0])
    try:
        result, contents = _judged(json.loads(request))
        for key, content in contents.items():
            (folder / f"{key}.stablehlo").write_bytes(content)
    except BaseException as error:  # a source must not choose how this process ends
        result = _refusal(error)
    # The parent reads only after this process has ended, so that there is no half to be seen.
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def _judged(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    from nanoevolve_jax.codegen.validation import language

    source, slot = request["source"], request["slot"]
    language.check(source, slot, request.get("max_source_bytes", language.MAX_SOURCE_BYTES))

    _prepare_jax()
    from nanoevolve_jax.codegen.validation import checks

    shapes, tried = (
        [None if shape is None else tuple(shape) for shape in request[name]]
        for name in ("shapes", "tried")
    )
    found = checks.check(source, slot, shapes, request["dtype"], request["max_cost"], tried)
    result = {
        "refusal": None,
        "computation": found.computation,
        "seed_computation": found.seed_computation,
        "programs": {key: program.facts() for key, program in found.programs.items()},
        "checks": list(checks.PASSED),
    }
    return result, {key: program.content for key, program in found.programs.items()}


def _refusal(error: BaseException) -> dict[str, Any]:
    from nanoevolve_jax.codegen.validation.refusals import Refusal, Refused, one_line

    if isinstance(error, Refused):
        refusal = error.refusal
    elif isinstance(error, MemoryError):
        refusal = Refusal("memory", "it needs more memory than the child has")
    else:
        first = (str(error).strip().splitlines() or [""])[0]
        refusal = Refusal("trace", one_line(f"{type(error).__name__}: {first}"))
    empty = {"computation": None, "seed_computation": None, "programs": {}, "checks": []}
    return {"refusal": refusal._asdict(), **empty}


def _prepare_jax() -> None:
    """A CPU, few threads, no word: set before JAX is imported, and no longer after."""
    if "jax" in sys.modules:
        return
    os.environ.update(
        JAX_PLATFORMS="cpu",
        NPROC=str(THREADS),  # threads of XLA's pools
        TF_CPP_MIN_LOG_LEVEL="3",
        JAX_ENABLE_COMPILATION_CACHE="false",
    )


def _be_silent() -> None:
    """Standard output and error lead nowhere, for libraries in C too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


if __name__ == "__main__":
    # An isolated Python looks for packages neither here nor where it was started.
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    _be_silent()
    sys.exit(main(sys.argv[1:], sys.stdin.buffer.read()))
