"""What a program does on the battery, compared with the built-in function's and with itself."""

from collections.abc import Callable, Sequence

import numpy as np

from nanoevolve_jax.codegen.validation.battery import Battery
from nanoevolve_jax.codegen.validation.refusals import Refused

Results = Sequence[np.ndarray]
Call = Callable[..., Results]


def require_sound(call: Call, baseline: Call, inputs: Battery, names: Sequence[str]) -> None:
    """Refuses a program that loses finiteness, repeats differently, or mixes its lanes.

    Args:
      call: flat arguments [lanes, ...] to flat results [lanes, ...].
      baseline: the built-in function's program, alike.
      inputs: see `battery`.
      names: of the results.

    Raises:
      Refused: with reason 'non_finite', 'nondeterministic' or 'effect'.
    """
    results = _arrays(call(*inputs.arguments))
    _require_finite(results, _arrays(baseline(*inputs.arguments)), inputs.names, names)
    for name, first, second in zip(names, results, _arrays(call(*inputs.arguments)), strict=True):
        if first.tobytes() != second.tobytes():
            raise Refused("nondeterministic", f"result {name!r} differs from one call to the next")
    _require_independent(call, results, inputs, names)


def _arrays(results: Results) -> list[np.ndarray]:
    return [np.asarray(x) for x in results]


def _finite(results: list[np.ndarray]) -> np.ndarray:
    """Whether all entries are finite; [results, lanes]."""
    return np.stack([np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in results])


def _require_finite(
    results: list[np.ndarray],
    baseline: list[np.ndarray],
    lanes: Sequence[str],
    names: Sequence[str],
) -> None:
    lost = ~_finite(results) & _finite(baseline).all(axis=0)
    if lost.any():
        result, lane = np.argwhere(lost)[0]
        raise Refused("non_finite", f"result {names[result]!r} is not finite for {lanes[lane]}")


def _require_independent(
    call: Call, results: list[np.ndarray], inputs: Battery, names: Sequence[str]
) -> None:
    """Every second lane is filled with NaN: the others must not notice."""
    spoiled = [x.copy() for x in inputs.arguments]
    for array in spoiled:
        if array.dtype.kind == "f":
            array[1::2] = np.nan
    for name, alone, beside in zip(names, results, _arrays(call(*spoiled)), strict=True):
        if alone[::2].tobytes() != beside[::2].tobytes():
            raise Refused("effect", f"result {name!r} of one matrix depends on another matrix")
